// Forward: one block for each row, which it keeps in shared memory, so that memory is read once: 16 bytes at a time where width and addresses
// allow. Rows that do not fit are read again.
// Backward: kNormParts blocks take rows in turn and add up the columns' sums in shared memory, float32; a second kernel adds the blocks' sums
// in a fixed order, so the same input gives the same bits. Columns that do not fit into shared memory are summed in global memory.
#include "ops/norm.h"

#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr int kForwardThreads = 256, kBackwardThreads = 512;

// ---------------------------------------------------------------- forward

template <class T, int N, bool kCached>
__global__ void __launch_bounds__(kForwardThreads) norm_forward_kernel(NormForward a) {
  SHARED(float, scratch, kForwardThreads / kWarp);
  using P = Pack<T, N>;
  DYNAMIC_SHARED(P, cache);  // the row; each thread reads only what it wrote itself
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + row * a.width;
  const T* residual = a.residual ? static_cast<const T*>(a.residual) + row * a.width : nullptr;
  T* sum = residual ? static_cast<T*>(a.sum) + row * a.width : nullptr;
  const auto read = [&](int64_t k) { return kCached ? cache[k / N] : load<N>((residual ? sum : x) + k); };

  float total = 0.f;
  for (int64_t k = threadIdx.x * N; k < a.width; k += kForwardThreads * N) {
    auto pack = load<N>(x + k);
    if (residual) {
      const auto more = load<N>(residual + k);
#pragma unroll
      for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(to_float(pack.v[i]) + to_float(more.v[i]));
      store<N>(sum + k, pack);
    }
    if (kCached) cache[k / N] = pack;
#pragma unroll
    for (int i = 0; i < N; ++i) total += to_float(pack.v[i]);
  }
  const float mean = a.center ? reduce_block<Sum, kForwardThreads>(total, scratch) / a.width : 0.f;

  float squares = 0.f;
  for (int64_t k = threadIdx.x * N; k < a.width; k += kForwardThreads * N) {
    const auto pack = read(k);
#pragma unroll
    for (int i = 0; i < N; ++i) squares += (to_float(pack.v[i]) - mean) * (to_float(pack.v[i]) - mean);
  }
  const float rstd = 1.f / sqrtf(reduce_block<Sum, kForwardThreads>(squares, scratch) / a.width + a.eps);
  if (threadIdx.x == 0) {
    if (a.center) a.mean[row] = mean;
    a.rstd[row] = rstd;
  }

  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y) + row * a.width;
  for (int64_t k = threadIdx.x * N; k < a.width; k += kForwardThreads * N) {
    auto pack = read(k);
    const P w = load_shared_by_rows<N>(weight + k), b = bias ? load_shared_by_rows<N>(bias + k) : P{};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float h = (to_float(pack.v[i]) - mean) * rstd * to_float(w.v[i]);
      pack.v[i] = from_float<T>(bias ? h + to_float(b.v[i]) : h);
    }
    store<N>(y + k, pack);
  }
}

template <class T, int N>
void forward(const NormForward& a, CUstream_st* stream) {
  const size_t bytes = a.width * sizeof(T);
  if (bytes <= kMaxShared) {
    LAUNCH((norm_forward_kernel<T, N, true>), grid(a.rows), kForwardThreads, bytes, stream, a);
  } else {
    LAUNCH((norm_forward_kernel<T, N, false>), grid(a.rows), kForwardThreads, 0, stream, a);
  }
}

// ---------------------------------------------------------------- backward

// What a block keeps in shared memory: the columns' sums and the row, only the sums, or nothing.
enum class Keep { kAll, kSums, kNothing };

template <class T, int N, Keep kKeep>
__global__ void __launch_bounds__(kBackwardThreads, 2) norm_backward_kernel(NormBackward a) {
  using P = Pack<T, N>;
  using F = Pack<float, 4>;
  constexpr bool kCached = kKeep == Keep::kAll;
  SHARED(float, scratch, kBackwardThreads / kWarp);
  DYNAMIC_SHARED(F, shared);
  float* const partial = a.partial + int64_t(blockIdx.x) * 2 * a.width;
  float* const sums = kKeep == Keep::kNothing ? partial : &shared[0].v[0];  // of grad_weight, then of grad_bias
  P* const cache = reinterpret_cast<P*>(&shared[0].v[0] + ceil_div<int64_t>(2 * a.width, 4) * 4);  // rows of grad_y, then of sum
  const T* const weight = static_cast<const T*>(a.weight);
  const int64_t packs = a.width / N;

  // Every column belongs to one thread in all that follows.
#pragma unroll 1
  for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[k + i] = sums[a.width + k + i] = 0.f;
  }
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int64_t first = row * a.width;
    const T *grad_y = static_cast<const T*>(a.grad_y) + first, *s = static_cast<const T*>(a.sum) + first;
    const float mean = a.center ? a.mean[row] : 0.f, rstd = a.rstd[row];
    float total = 0.f, total_h = 0.f;
#pragma unroll 1  // two blocks on a multiprocessor leave 64 registers
    for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
      const P d = load<N>(grad_y + k), v = load<N>(s + k), w = load_shared_by_rows<N>(weight + k);
      if (kCached) {
        cache[k / N] = d;
        cache[packs + k / N] = v;
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float g = to_float(d.v[i]), h = (to_float(v.v[i]) - mean) * rstd;
        total += g * to_float(w.v[i]);
        total_h += g * to_float(w.v[i]) * h;
        sums[k + i] += g * h;
        sums[a.width + k + i] += g;
      }
    }
    const float mean_g = a.center ? reduce_block<Sum, kBackwardThreads>(total, scratch) / a.width : 0.f;
    const float mean_gh = reduce_block<Sum, kBackwardThreads>(total_h, scratch) / a.width;
#pragma unroll 1
    for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
      const P d = kCached ? cache[k / N] : load<N>(grad_y + k), v = kCached ? cache[packs + k / N] : load<N>(s + k);
      const P w = load_shared_by_rows<N>(weight + k), more = a.grad_sum ? load<N>(static_cast<const T*>(a.grad_sum) + first + k) : P{};
      P pack;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float h = (to_float(v.v[i]) - mean) * rstd;
        // Rounded as in the mean, not fused with the subtraction: where all terms are equal nothing is left, and rstd may be large.
        const float slope = rstd * (__fmul_rn(to_float(d.v[i]), to_float(w.v[i])) - mean_g - h * mean_gh);
        pack.v[i] = from_float<T>(a.grad_sum ? slope + to_float(more.v[i]) : slope);
      }
      store<N>(static_cast<T*>(a.grad_x) + first + k, pack);
    }
  }
  if constexpr (kKeep != Keep::kNothing) {
#pragma unroll 1
    for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        partial[k + i] = sums[k + i];
        partial[a.width + k + i] = sums[a.width + k + i];
      }
    }
  }
}

template <class T, int N>
void backward(const NormBackward& a, CUstream_st* stream) {
  const int parts = a.rows < kNormParts ? static_cast<int>(a.rows) : kNormParts;
  if (parts > 0) {
    const size_t sums = ceil_div<int64_t>(2 * a.width, 4) * 16, all = sums + 2 * a.width * sizeof(T);
    if (all <= kMaxShared) {
      LAUNCH((norm_backward_kernel<T, N, Keep::kAll>), parts, kBackwardThreads, all, stream, a);
    } else if (sums <= kMaxShared) {
      LAUNCH((norm_backward_kernel<T, N, Keep::kSums>), parts, kBackwardThreads, sums, stream, a);
    } else {
      LAUNCH((norm_backward_kernel<T, N, Keep::kNothing>), parts, kBackwardThreads, 0, stream, a);
    }
  }
  sum_parts<T>(a.partial, parts, 2 * a.width, a.width, static_cast<T*>(a.grad_weight), stream);
  if (a.grad_bias) sum_parts<T>(a.partial + a.width, parts, 2 * a.width, a.width, static_cast<T*>(a.grad_bias), stream);
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const NormForward& a) {
  if (a.rows == 0) return;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::aligned<T>(a.width, a.x, a.residual, a.weight, a.bias, a.y, a.sum);
    wide ? cuda::forward<T, cuda::kLanes<T>>(a, on.stream) : cuda::forward<T, 1>(a, on.stream);
  });
}

void run(Cuda on, const NormBackward& a) {
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::aligned<T>(a.width, a.grad_y, a.grad_sum, a.sum, a.weight, a.grad_x);
    wide ? cuda::backward<T, cuda::kLanes<T>>(a, on.stream) : cuda::backward<T, 1>(a, on.stream);
  });
}

}  // namespace megagpt
