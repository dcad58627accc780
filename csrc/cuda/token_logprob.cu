// One block for each row. Forward reads each logit once: every thread keeps the largest so far and the sums relative to it, and multiplies the
// sums when a larger one comes; the block combines them in a fixed order, so the same input gives the same bits. Backward reads each logit once and
// writes each gradient once. Rows may begin anywhere; all but their ends moves 16 bytes at a time, unless a row of the gradient is aligned otherwise
// than that of the logits.
#include "ops/token_logprob.h"

#include "cuda/reduce.cuh"
#include "cuda/row.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr float kLowest = -3.402823466e38f;
// exp of this is 0. What is smaller, down to -inf, is taken for it where 0 * -inf would be NaN.
constexpr float kVanished = -200.f;

// Sums over some y, relative to the largest of them.
template <bool kEntropy>
struct Sums {
  float top = kLowest, sum_exp = 0.f, weighted = 0.f;

  __device__ __forceinline__ void raise(float higher) {
    const float d = top - higher, factor = expf(d);
    if (kEntropy) weighted = factor * (weighted + fmaxf(d, kVanished) * sum_exp);
    sum_exp *= factor;
    top = higher;
  }

  template <class T, int N>
  __device__ __forceinline__ void add(const Pack<T, N>& pack, float scale) {
    float y[N], largest = top;  // fmaxf lets NaN go, the sum does not
#pragma unroll
    for (int i = 0; i < N; ++i) {
      y[i] = scale * to_float(pack.v[i]);
      largest = fmaxf(largest, y[i]);
    }
    if (largest > top) raise(largest);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float e = expf(y[i] - top);
      sum_exp += e;
      if (kEntropy) weighted += e * fmaxf(y[i] - top, kVanished);
    }
  }
};

template <class T, bool kEntropy>
__global__ void __launch_bounds__(kThreads) token_logprob_forward_kernel(TokenLogprobForward a) {
  SHARED(float, scratch, kThreads / kWarp);
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.logits) + a.at.offset(row);
  Sums<kEntropy> sums;
  for_each_pack<kLanes<T>>(x, a.num_valid, threadIdx.x, kThreads, [&](int64_t, const auto& pack) { sums.add(pack, a.scale); });
  sums.raise(reduce_block<Max, kThreads>(sums.top, scratch));
  const float sum_exp = reduce_block<Sum, kThreads>(sums.sum_exp, scratch);
  const float weighted = kEntropy ? reduce_block<Sum, kThreads>(sums.weighted, scratch) : 0.f;
  if (threadIdx.x > 0) return;
  a.top[row] = sum_exp == 0.f ? -__builtin_huge_valf() : sums.top;
  a.sum_exp[row] = sum_exp;
  if (kEntropy) a.weighted[row] = weighted;
  const int64_t id = a.ids[row];
  a.target[row] = id >= 0 && id < a.num_valid ? a.scale * to_float(x[id]) : 0.f;
}

template <class T, bool kEntropy>
__global__ void __launch_bounds__(kThreads) token_logprob_backward_kernel(TokenLogprobBackward a) {
  const int64_t row = blockIdx.x, id = a.ids[row];
  const T* x = static_cast<const T*>(a.logits) + a.at.offset(row);
  T* grad = static_cast<T*>(a.grad) + a.grad_at.offset(row);
  const float scale = a.scale, top = a.top[row], log_sum = a.log_sum[row];
  const float of_logprob = a.grad_logprob ? scale * a.grad_logprob[row] : 0.f, of_lse = a.grad_lse ? scale * a.grad_lse[row] : 0.f;
  const float of_entropy = kEntropy ? scale * a.grad_entropy[row] : 0.f, entropy = kEntropy ? a.entropy[row] : 0.f;
  const auto write = [&]<int N>(int64_t k, Pack<T, N> pack) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float z = scale * to_float(pack.v[i]) - top - log_sum, p = expf(z);
      const float factor = kEntropy ? of_lse - of_entropy * (fmaxf(z, kVanished) + entropy) : of_lse;
      // 1 - p by expm1: where p is close to 1 it adds no error to that of z
      pack.v[i] = from_float<T>(k + i == id ? p * factor - of_logprob * expm1f(z) : p * (factor - of_logprob));
    }
    store<N>(grad + k, pack);
  };
  if ((reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(grad)) % 16 == 0) {
    for_each_pack<kLanes<T>>(x, a.num_valid, threadIdx.x, kThreads, write);
  } else {
    for_each_pack<1>(x, a.num_valid, threadIdx.x, kThreads, write);
  }
#pragma unroll 1
  for (int64_t k = a.num_valid + threadIdx.x; k < a.width; k += kThreads) store<1>(grad + k, {from_float<T>(0.f)});
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const TokenLogprobForward& a) {
  using namespace cuda;
  if (a.rows == 0) return;
  dispatch(a.dtype, [&]<class T>(T*) {
    if (a.weighted) {
      LAUNCH((token_logprob_forward_kernel<T, true>), grid(a.rows), kThreads, 0, on.stream, a);
    } else {
      LAUNCH((token_logprob_forward_kernel<T, false>), grid(a.rows), kThreads, 0, on.stream, a);
    }
  });
}

void run(Cuda on, const TokenLogprobBackward& a) {
  using namespace cuda;
  if (a.rows == 0) return;
  dispatch(a.dtype, [&]<class T>(T*) {
    if (a.grad_entropy) {
      LAUNCH((token_logprob_backward_kernel<T, true>), grid(a.rows), kThreads, 0, on.stream, a);
    } else {
      LAUNCH((token_logprob_backward_kernel<T, false>), grid(a.rows), kThreads, 0, on.stream, a);
    }
  });
}

}  // namespace megagpt
