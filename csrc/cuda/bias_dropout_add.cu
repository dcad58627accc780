// Geometry as in cuda/columns.cuh. Forward: x and residual read, y written once. Backward: grad_y read, grad_x written once; at most kColumnParts
// parts of the rows with sums of their own, which a second kernel adds in a fixed order, so the same input gives the same bits. Four neighbouring
// elements share one draw; where width or alignment allow no wide loads, each element draws all four for itself.
#include "ops/bias_dropout_add.h"

#include "common/philox.h"
#include "cuda/columns.cuh"

namespace megagpt {
namespace cuda {
namespace {

// The mask of N columns of a row, from this one on.
template <int N>
__device__ __forceinline__ void draw(const DropoutMask& mask, int64_t row, int64_t width, int64_t column, float (&m)[N]) {
  // Fewer than 2^31 rows: 32 bits divide several times faster.
  const uint32_t position = static_cast<uint32_t>(row) / static_cast<uint32_t>(mask.batch);
  const uint32_t sequence = static_cast<uint32_t>(row) - position * static_cast<uint32_t>(mask.batch);
  const uint64_t row_id = static_cast<uint64_t>(mask.row_ids[sequence]), element = mask.first + static_cast<uint64_t>(position * width + column);
  if constexpr (N == 1) {
    const PhiloxWords words = philox(element / 4, row_id, mask.key);
    const int place = element % 4;
    const uint32_t word = place == 0 ? words.v[0] : place == 1 ? words.v[1] : place == 2 ? words.v[2] : words.v[3];
    m[0] = word >> 8 < mask.threshold ? mask.scale : 0.f;
  } else {
    static_assert(N % 4 == 0);
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      const PhiloxWords words = philox((element + k) / 4, row_id, mask.key);
#pragma unroll
      for (int i = 0; i < 4; ++i) m[k + i] = words.v[i] >> 8 < mask.threshold ? mask.scale : 0.f;
    }
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kColumnThreads) bias_dropout_add_forward_kernel(BiasDropoutAddForward a, int64_t part_rows) {
  const Tile t = tile<N>(a.rows, a.width, part_rows);
  if (t.column >= a.width) return;
  const auto bias = load_bias<N>(static_cast<const T*>(a.bias), t.column);
#pragma unroll 1
  for (int64_t row = t.row; row < t.end; row += kRowLanes) {
    const int64_t k = row * a.width + t.column;
    auto pack = load<N>(static_cast<const T*>(a.x) + k);
    const auto residual = load<N>(static_cast<const T*>(a.residual) + k);
    float mask[N];
    draw<N>(a.mask, row, a.width, t.column, mask);
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(to_float(residual.v[i]) + mask[i] * (to_float(pack.v[i]) + to_float(bias.v[i])));
    store<N>(static_cast<T*>(a.y) + k, pack);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kColumnThreads) bias_dropout_add_backward_kernel(BiasDropoutAddBackward a, int64_t part_rows) {
  SHARED(float, scratch, kColumnThreads * N);
  const Tile t = tile<N>(a.rows, a.width, part_rows);
  float sums[N] = {};
  if (t.column < a.width) {
#pragma unroll 1
    for (int64_t row = t.row; row < t.end; row += kRowLanes) {
      const int64_t k = row * a.width + t.column;
      Pack<T, N> pack;
      if (a.grad_y) pack = load<N>(static_cast<const T*>(a.grad_y) + k);
      float grad[N];
      draw<N>(a.mask, row, a.width, t.column, grad);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (a.grad_y) grad[i] *= to_float(pack.v[i]);
        sums[i] += grad[i];
        pack.v[i] = from_float<T>(grad[i]);
      }
      store<N>(static_cast<T*>(a.grad_x) + k, pack);
    }
  }
  if (a.grad_bias) store_sums<N>(sums, scratch, a.partial + t.part * a.width, t.column, a.width);
}

template <class T, int N>
void forward(const BiasDropoutAddForward& a, CUstream_st* stream) {
  LAUNCH((bias_dropout_add_forward_kernel<T, N>), column_grid<N>(a.rows, a.width, kFreeRows), column_block(), 0, stream, a, kFreeRows);
}

template <class T, int N>
void backward(const BiasDropoutAddBackward& a, CUstream_st* stream) {
  const int64_t part_rows = a.grad_bias ? summed_rows(a.rows) : kFreeRows;
  if (a.rows > 0) {
    LAUNCH((bias_dropout_add_backward_kernel<T, N>), column_grid<N>(a.rows, a.width, part_rows), column_block(), 0, stream, a, part_rows);
  }
  if (a.grad_bias) sum_columns(a.partial, a.rows, a.width, static_cast<T*>(a.grad_bias), stream);
}

// Packs begin where a draw does.
bool whole_draws(const DropoutMask& mask) { return mask.first % 4 == 0; }

}  // namespace
}  // namespace cuda

void run(Cuda on, const BiasDropoutAddForward& a) {
  if (a.rows == 0) return;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::whole_draws(a.mask) && cuda::aligned<T>(a.width, a.x, a.bias, a.residual, a.y);
    wide ? cuda::forward<T, cuda::kLanes<T>>(a, on.stream) : cuda::forward<T, 1>(a, on.stream);
  });
}

void run(Cuda on, const BiasDropoutAddBackward& a) {
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::whole_draws(a.mask) && cuda::aligned<T>(a.width, a.grad_y, a.grad_x);
    wide ? cuda::backward<T, cuda::kLanes<T>>(a, on.stream) : cuda::backward<T, 1>(a, on.stream);
  });
}

}  // namespace megagpt
