// Geometry as in cuda/columns.cuh. Forward: x read and y written once. Backward: grad_y and x read, grad_x written once; at most kColumnParts
// parts of the rows with sums of their own, which a second kernel adds in a fixed order, so the same input gives the same bits.
#include "ops/bias_gelu.h"

#include "cuda/columns.cuh"

namespace megagpt {
namespace cuda {
namespace {

// Each has y = v * value and grad_x = grad_y * slope.
struct TanhGelu {
  static constexpr float kScale = 2.f * 0.7978845608f, kCubic = 0.044715f, kFar = 20.f;
  __device__ __forceinline__ static Sigmoid sigmoid(float v) { return Sigmoid(v * (kScale + kScale * kCubic * (v * v))); }
  __device__ __forceinline__ static float value(float v) { return v * sigmoid(v).value; }
  __device__ __forceinline__ static float slope(float v) {
    const Sigmoid s = sigmoid(v);
    const float near = fminf(fmaxf(v, -kFar), kFar);  // further out s.slope is 0, and v * v may be infinite
    const float du = near * (kScale + 3.f * kScale * kCubic * (near * near));
    return s.slope * du + (s.value + v * 0.f);  // v * 0: NaN where v is infinite or NaN
  }
};

struct ExactGelu {
  __device__ __forceinline__ static float probability(float v) { return 0.5f + 0.5f * erff(v * 0.70710678f); }
  __device__ __forceinline__ static float value(float v) { return v * probability(v); }
  __device__ __forceinline__ static float slope(float v) { return probability(v) + v * (0.39894228f * expf(-0.5f * (v * v))); }
};

template <class Gelu, class T, int N>
__global__ void __launch_bounds__(kColumnThreads) bias_gelu_forward_kernel(BiasGeluForward a, int64_t part_rows) {
  const Tile t = tile<N>(a.rows, a.width, part_rows);
  if (t.column >= a.width) return;
  const auto bias = load_bias<N>(static_cast<const T*>(a.bias), t.column);
#pragma unroll 1
  for (int64_t row = t.row; row < t.end; row += kRowLanes) {
    const int64_t k = row * a.width + t.column;
    auto pack = load<N>(static_cast<const T*>(a.x) + k);
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(Gelu::value(to_float(pack.v[i]) + to_float(bias.v[i])));
    store<N>(static_cast<T*>(a.y) + k, pack);
  }
}

template <class Gelu, class T, int N>
__global__ void __launch_bounds__(kColumnThreads) bias_gelu_backward_kernel(BiasGeluBackward a, int64_t part_rows) {
  SHARED(float, scratch, kColumnThreads * N);
  const Tile t = tile<N>(a.rows, a.width, part_rows);
  float sums[N] = {};
  if (t.column < a.width) {
    const auto bias = load_bias<N>(static_cast<const T*>(a.bias), t.column);
#pragma unroll 1
    for (int64_t row = t.row; row < t.end; row += kRowLanes) {
      const int64_t k = row * a.width + t.column;
      const auto grad_y = load<N>(static_cast<const T*>(a.grad_y) + k);
      auto pack = load<N>(static_cast<const T*>(a.x) + k);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float grad = to_float(grad_y.v[i]) * Gelu::slope(to_float(pack.v[i]) + to_float(bias.v[i]));
        sums[i] += grad;
        pack.v[i] = from_float<T>(grad);
      }
      store<N>(static_cast<T*>(a.grad_x) + k, pack);
    }
  }
  if (a.grad_bias) store_sums<N>(sums, scratch, a.partial + t.part * a.width, t.column, a.width);
}

template <class Gelu, class T, int N>
void forward(const BiasGeluForward& a, CUstream_st* stream) {
  LAUNCH((bias_gelu_forward_kernel<Gelu, T, N>), column_grid<N>(a.rows, a.width, kFreeRows), column_block(), 0, stream, a, kFreeRows);
}

template <class Gelu, class T, int N>
void backward(const BiasGeluBackward& a, CUstream_st* stream) {
  const int64_t part_rows = a.grad_bias ? summed_rows(a.rows) : kFreeRows;
  if (a.rows > 0) {
    LAUNCH((bias_gelu_backward_kernel<Gelu, T, N>), column_grid<N>(a.rows, a.width, part_rows), column_block(), 0, stream, a, part_rows);
  }
  if (a.grad_bias) sum_columns(a.partial, a.rows, a.width, static_cast<T*>(a.grad_bias), stream);
}

// f.operator()<Gelu, T, N>()
template <class F, class... P>
void choose(bool tanh, Dtype dtype, int64_t width, const F& f, const P*... pointers) {
  dispatch(dtype, [&]<class T>(T*) {
    const auto of = [&]<class Gelu>() {
      aligned<T>(width, pointers...) ? f.template operator()<Gelu, T, kLanes<T>>() : f.template operator()<Gelu, T, 1>();
    };
    tanh ? of.template operator()<TanhGelu>() : of.template operator()<ExactGelu>();
  });
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const BiasGeluForward& a) {
  if (a.rows == 0) return;
  cuda::choose(a.tanh, a.dtype, a.width, [&]<class Gelu, class T, int N>() { cuda::forward<Gelu, T, N>(a, on.stream); }, a.x, a.bias, a.y);
}

void run(Cuda on, const BiasGeluBackward& a) {
  cuda::choose(a.tanh, a.dtype, a.width, [&]<class Gelu, class T, int N>() { cuda::backward<Gelu, T, N>(a, on.stream); }, a.grad_y, a.x, a.bias,
               a.grad_x);
}

}  // namespace megagpt
