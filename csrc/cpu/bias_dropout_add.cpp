// One thread for each chunk of a row, whose mask is drawn into the first-level cache before the chunk is computed. Where columns are summed, each
// part of the rows has sums of its own.
#include "ops/bias_dropout_add.h"

#include "common/philox.h"
#include "cpu/columns.h"

namespace megagpt {
namespace {

// Counters that are drawn at once. At 32 the compiler keeps each round in vectors for all three instruction sets; at 16 it does not.
constexpr int kCounters = 32;
constexpr int64_t kDrawn = 4 * kCounters, kChunk = 8 * kDrawn;

class Chunk {
 public:
  // The mask of `count` <= kChunk features of a row, from this one on.
  const float* draw(const DropoutMask& mask, int64_t row, int64_t width, int64_t feature, int64_t count) {
    const uint64_t element = mask.first + static_cast<uint64_t>(row / mask.batch * width + feature);
    const int64_t skipped = element % 4;
    for (int64_t drawn = 0; drawn < skipped + count; drawn += kDrawn) {
      draw(mask, (element + drawn) / 4, static_cast<uint64_t>(mask.row_ids[row % mask.batch]), buffer_ + drawn);
    }
    return buffer_ + skipped;
  }

 private:
  static void draw(const DropoutMask& mask, uint64_t counter, uint64_t row_id, float* m) {
    uint32_t c0[kCounters], c1[kCounters], c2[kCounters], c3[kCounters];
    for (int i = 0; i < kCounters; ++i) {
      c0[i] = static_cast<uint32_t>(counter + i);
      c1[i] = static_cast<uint32_t>((counter + i) >> 32);
      c2[i] = static_cast<uint32_t>(row_id);
      c3[i] = static_cast<uint32_t>(row_id >> 32);
    }
    PhiloxKey key(mask.key);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      for (int i = 0; i < kCounters; ++i) philox_round(c0[i], c1[i], c2[i], c3[i], key);
      key.next_round();
    }
    const uint32_t threshold = mask.threshold;
    const float scale = mask.scale;
    for (int i = 0; i < kCounters; ++i) {
      m[4 * i] = c0[i] >> 8 < threshold ? scale : 0.f;
      m[4 * i + 1] = c1[i] >> 8 < threshold ? scale : 0.f;
      m[4 * i + 2] = c2[i] >> 8 < threshold ? scale : 0.f;
      m[4 * i + 3] = c3[i] >> 8 < threshold ? scale : 0.f;
    }
  }

  float buffer_[kChunk + kDrawn];
};

// f(row, its first feature, their number) for every chunk.
template <class F>
void parallel_chunks(int64_t rows, int64_t width, const F& f) {
  const int64_t chunks = (width + kChunk - 1) / kChunk;
  parallel_rows(rows * chunks, std::min(width, kChunk), [&](int64_t chunk) {
    const int64_t feature = chunk % chunks * kChunk;
    f(chunk / chunks, feature, std::min(kChunk, width - feature));
  });
}

template <class T>
void forward(const BiasDropoutAddForward& a) {
  const auto *x = static_cast<const T*>(a.x), *bias = static_cast<const T*>(a.bias), *residual = static_cast<const T*>(a.residual);
  auto* y = static_cast<T*>(a.y);
  parallel_chunks(a.rows, a.width, [&](int64_t row, int64_t feature, int64_t count) {
    Chunk chunk;
    const float* mask = chunk.draw(a.mask, row, a.width, feature, count);
    const int64_t k = row * a.width + feature;
    if (bias) {
      const auto add = [](const Vec& v, const Vec& m, const Vec& r, const Vec& b) { return at::vec::fmadd(v + b, m, r); };
      transform(count, y + k, add, x + k, mask, residual + k, bias + feature);
    } else {
      transform(count, y + k, [](const Vec& v, const Vec& m, const Vec& r) { return at::vec::fmadd(v, m, r); }, x + k, mask, residual + k);
    }
  });
}

template <class T>
void backward(const BiasDropoutAddBackward& a) {
  const auto* grad_y = static_cast<const T*>(a.grad_y);
  auto* grad_x = static_cast<T*>(a.grad_x);
  if (!a.grad_bias) {
    return parallel_chunks(a.rows, a.width, [&](int64_t row, int64_t feature, int64_t count) {
      Chunk chunk;
      const float* mask = chunk.draw(a.mask, row, a.width, feature, count);
      const int64_t k = row * a.width + feature;
      if (grad_y) {
        transform(count, grad_x + k, [](const Vec& g, const Vec& m) { return g * m; }, grad_y + k, mask);
      } else {
        transform(count, grad_x + k, [](const Vec& m) { return m; }, mask);
      }
    });
  }
  sum_rows(a.rows, a.width, static_cast<T*>(a.grad_bias), [&](int64_t row, float* sums) {
    Chunk chunk;
    for (int64_t feature = 0; feature < a.width; feature += kChunk) {
      const int64_t count = std::min(kChunk, a.width - feature), k = row * a.width + feature;
      const float* mask = chunk.draw(a.mask, row, a.width, feature, count);
      transform_and_sum(count, std::array{grad_x + k}, std::array{sums + feature}, [](const Vec& g, const Vec& m) { return std::array{g * m}; },
                        grad_y + k, mask);
    }
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const BiasDropoutAddForward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { forward<T>(a); });
}

void run(MEGAGPT_CAPABILITY, const BiasDropoutAddBackward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { backward<T>(a); });
}

}  // namespace megagpt
