#include "cases.h"
#include "ops/rotary.h"

#include <utility>

CASES(rotary) {
  using namespace megagpt;
  const int64_t tokens = 3, max_position = 4, positions[] = {3, 0, 9};  // the last one lies outside
  for (Dtype dtype : kDtypes) {
    for (int64_t heads : {1, 5}) {
      for (int64_t width : {7, 32, 40}) {
        for (int64_t size : {int64_t{0}, width / 2 * 2, int64_t{6}, int64_t{16}}) {
          if (size > width) continue;
          // Heads and tokens lie apart, by whole packs or not; the last head of the last token ends with the buffer.
          for (auto [head_gap, token_gap] : {std::pair<int64_t, int64_t>{0, 0}, {8, 0}, {8, 1}, {1, 0}}) {
            const int64_t head_stride = width + head_gap, token_stride = heads * head_stride + token_gap;
            const Buffer x(dtype, (tokens - 1) * token_stride + (heads - 1) * head_stride + width), y(dtype, tokens * heads * width);
            const Buffer cos = floats(max_position * size / 2), sin = floats(max_position * size / 2);
            const Rows rows{{tokens}, {token_stride}, 1};
            for (bool interleaved : {false, true}) {
              run(Cuda{nullptr},
                  Rotary{x, rows, head_stride, positions, cos, sin, y, tokens, heads, width, size, max_position, interleaved, false, dtype});
            }
          }
        }
      }
    }
  }
}
