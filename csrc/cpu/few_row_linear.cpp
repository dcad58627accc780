// Tiles of outputs for one vector of rows, shared among threads; the next tile's weights are asked for while this one's are multiplied.
#include "ops/few_row_linear.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

constexpr int64_t kLanes = Vec::size();
// Sums enough not to wait for one another, and fewer weight matrix rows than a cache set has ways: they often lie a multiple of 4 KiB apart.
constexpr int64_t kTile = 8;

// A float that holds a long sum loses digits of what is added to it, so that long rows are summed up in parts.
constexpr int64_t kPart = 256;

// Outputs [first, first + N) of the rows whose inputs are x [inputs, kLanes]; sums [N, kLanes].
template <int64_t N>
void multiply(const FewRowLinear& a, const float* x, int64_t first, float* sums) {
  const float *w = a.weight + first * a.inputs, *next = w + N * a.inputs;
  for (int64_t n = 0; n < N; ++n) Vec(a.bias ? a.bias[first + n] : 0.f).store(sums + n * kLanes);
  for (int64_t begin = 0; begin < a.inputs; begin += kPart) {
    const int64_t end = std::min(begin + kPart, a.inputs);
    Vec part[N];
#pragma GCC unroll 8
    for (int64_t n = 0; n < N; ++n) part[n] = Vec(0.f);
    for (int64_t k = begin; k < end; ++k) {
      const Vec input = Vec::loadu(x + k * kLanes);
      __builtin_prefetch(next + k * N, 0, 2);
#pragma GCC unroll 8
      for (int64_t n = 0; n < N; ++n) part[n] = at::vec::fmadd(Vec(w[n * a.inputs + k]), input, part[n]);
    }
#pragma GCC unroll 8
    for (int64_t n = 0; n < N; ++n) (Vec::loadu(sums + n * kLanes) + part[n]).store(sums + n * kLanes);
  }
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const FewRowLinear& a) {
  // A vector of rows behind the other, absent rows as zeros.
  const int64_t vectors = (a.rows + kLanes - 1) / kLanes, size = a.inputs * kLanes;
  std::vector<float> x(vectors * size);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t rows = std::min(kLanes, a.rows - v * kLanes);
    at::vec::transpose_mxn<float>(a.x + v * size, a.inputs, x.data() + v * size, kLanes, static_cast<int>(rows), static_cast<int>(a.inputs));
  }
  const int64_t tiles = (a.outputs + kTile - 1) / kTile;
  at::parallel_for(0, tiles, std::max<int64_t>(1, kGrain / (kTile * a.inputs)), [&](int64_t begin, int64_t end) {
    float sums[kTile * kLanes];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kTile, count = std::min(kTile, a.outputs - first);
      for (int64_t v = 0; v < vectors; ++v) {
        if (count == kTile) {
          multiply<kTile>(a, x.data() + v * size, first, sums);
        } else {
          for (int64_t n = 0; n < count; ++n) multiply<1>(a, x.data() + v * size, first + n, sums + n * kLanes);
        }
        const int64_t rows = std::min(kLanes, a.rows - v * kLanes);
        at::vec::transpose_mxn<float>(sums, kLanes, a.y + v * kLanes * a.outputs + first, a.outputs, static_cast<int>(count), static_cast<int>(rows));
      }
    }
  });
}

}  // namespace megagpt
