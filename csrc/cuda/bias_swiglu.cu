// Geometry as in cuda/columns.cuh, over the columns of y. Forward: x read and y written once. Backward: grad_y and x read, grad_x written once; at
// most kColumnParts parts of the rows with sums of their own, which a second kernel adds in a fixed order, so the same input gives the same bits.
#include "ops/bias_swiglu.h"

#include "cuda/columns.cuh"

namespace megagpt {
namespace cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kColumnThreads) bias_swiglu_forward_kernel(BiasSwigluForward a, int64_t part_rows) {
  const Tile t = tile<N>(a.rows, a.width, part_rows);
  if (t.column >= a.width) return;
  const T* const bias = static_cast<const T*>(a.bias);
  const auto bias_gate = load_bias<N>(bias, t.column), bias_up = load_bias<N>(bias, t.column + a.width);
#pragma unroll 1
  for (int64_t row = t.row; row < t.end; row += kRowLanes) {
    const T* const x = static_cast<const T*>(a.x) + row * 2 * a.width + t.column;
    auto gate = load<N>(x);
    const auto up = load<N>(x + a.width);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = to_float(gate.v[i]) + to_float(bias_gate.v[i]);
      gate.v[i] = from_float<T>(v * Sigmoid(v).value * (to_float(up.v[i]) + to_float(bias_up.v[i])));
    }
    store<N>(static_cast<T*>(a.y) + row * a.width + t.column, gate);
  }
}

// Three blocks for each multiprocessor, since four would spill. Their 768 threads have 48 bytes each on the way from memory, 36 KiB in all: twice
// what an H100 needs to hide a latency of 0.7 us at its full bandwidth.
template <class T, int N>
__global__ void __launch_bounds__(kColumnThreads, 3) bias_swiglu_backward_kernel(BiasSwigluBackward a, int64_t part_rows) {
  SHARED(float, scratch, kColumnThreads * N);
  const Tile t = tile<N>(a.rows, a.width, part_rows);
  float sums_gate[N] = {}, sums_up[N] = {};
  if (t.column < a.width) {
    const T* const bias = static_cast<const T*>(a.bias);
    const auto bias_gate = load_bias<N>(bias, t.column), bias_up = load_bias<N>(bias, t.column + a.width);
#pragma unroll 1
    for (int64_t row = t.row; row < t.end; row += kRowLanes) {
      const int64_t k = row * 2 * a.width + t.column;
      const auto grad_y = load<N>(static_cast<const T*>(a.grad_y) + row * a.width + t.column);
      auto gate = load<N>(static_cast<const T*>(a.x) + k), up = load<N>(static_cast<const T*>(a.x) + k + a.width);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float g = to_float(grad_y.v[i]), v = to_float(gate.v[i]) + to_float(bias_gate.v[i]);
        const Sigmoid s(v);
        const float grad_gate = g * (to_float(up.v[i]) + to_float(bias_up.v[i])) * (s.value + v * s.slope), grad_up = g * v * s.value;
        sums_gate[i] += grad_gate;
        sums_up[i] += grad_up;
        gate.v[i] = from_float<T>(grad_gate);
        up.v[i] = from_float<T>(grad_up);
      }
      store<N>(static_cast<T*>(a.grad_x) + k, gate);
      store<N>(static_cast<T*>(a.grad_x) + k + a.width, up);
    }
  }
  if (!a.grad_bias) return;
  float* const partial = a.partial + t.part * 2 * a.width;
  store_sums<N>(sums_gate, scratch, partial, t.column, a.width);
  store_sums<N>(sums_up, scratch, partial + a.width, t.column, a.width);
}

template <class T, int N>
void forward(const BiasSwigluForward& a, CUstream_st* stream) {
  LAUNCH((bias_swiglu_forward_kernel<T, N>), column_grid<N>(a.rows, a.width, kFreeRows), column_block(), 0, stream, a, kFreeRows);
}

template <class T, int N>
void backward(const BiasSwigluBackward& a, CUstream_st* stream) {
  const int64_t part_rows = a.grad_bias ? summed_rows(a.rows) : kFreeRows;
  if (a.rows > 0) {
    LAUNCH((bias_swiglu_backward_kernel<T, N>), column_grid<N>(a.rows, a.width, part_rows), column_block(), 0, stream, a, part_rows);
  }
  if (a.grad_bias) sum_columns(a.partial, a.rows, 2 * a.width, static_cast<T*>(a.grad_bias), stream);
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const BiasSwigluForward& a) {
  if (a.rows == 0) return;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::aligned<T>(a.width, a.x, a.bias, a.y);
    wide ? cuda::forward<T, cuda::kLanes<T>>(a, on.stream) : cuda::forward<T, 1>(a, on.stream);
  });
}

void run(Cuda on, const BiasSwigluBackward& a) {
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::aligned<T>(a.width, a.grad_y, a.x, a.bias, a.grad_x);
    wide ? cuda::backward<T, cuda::kLanes<T>>(a, on.stream) : cuda::backward<T, 1>(a, on.stream);
  });
}

}  // namespace megagpt
