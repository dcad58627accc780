// kPpoParts blocks take elements in turn and sum theirs; a second kernel adds the blocks' sums in a fixed order, so the same input gives the same
// bits. Bytes: 20 an element, four inputs and the slope, each moved once and 16 at a time where count and addresses allow.
#include "ops/ppo_loss.h"

#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// torch's minimum and maximum: NaN if either is.
__device__ __forceinline__ float least_of(float a, float b) { return a <= b ? a : b < a ? b : a + b; }
__device__ __forceinline__ float most_of(float a, float b) { return a >= b ? a : b > a ? b : a + b; }
__device__ __forceinline__ float clamp(float x, float least, float most) { return x < least ? least : x > most ? most : x; }

// What torch.minimum passes on to its first argument a of the gradient, and torch.maximum to its second: all, half where they are equal, or
// nothing; with NaN all.
__device__ __forceinline__ float passed(float gradient, float a, float b) { return a > b ? 0.f : a == b ? 0.5f * gradient : gradient; }

struct Policy {
  static constexpr int kSums = 4;
  const float *x, *old, *goal, *mask;
  float least, most;

  __device__ __forceinline__ float element(float (&sums)[kSums], float logprob, float old_logprob, float advantage, float shown) const {
    const float log_ratio = (logprob - old_logprob) * shown, ratio = expf(log_ratio), clipped = clamp(ratio, least, most);
    const float free = ratio * advantage, bound = clipped * advantage;
    sums[0] -= least_of(free, bound) * shown;
    sums[1] += (ratio != clipped ? 1.f : 0.f) * shown;
    sums[2] += fabsf(ratio - 1.f) * shown;
    sums[3] += (ratio - 1.f - log_ratio) * shown;
    const float by_bound = ratio >= least && ratio <= most ? passed(shown, bound, free) * advantage : 0.f;
    return -(passed(shown, free, bound) * advantage + by_bound) * ratio * shown;
  }
};

struct Value {
  static constexpr int kSums = 2;
  const float *x, *old, *goal, *mask;
  float clip;

  __device__ __forceinline__ float element(float (&sums)[kSums], float value, float old_value, float target, float shown) const {
    const float step = value - old_value, error = value - target, clipped_error = old_value + clamp(step, -clip, clip) - target;
    const float free = error * error, bound = clipped_error * clipped_error;
    sums[0] += 0.5f * most_of(free, bound) * shown;
    sums[1] += free * shown;
    const float by_bound = step >= -clip && step <= clip ? passed(shown, free, bound) * clipped_error : 0.f;
    return passed(shown, bound, free) * error + by_bound;
  }
};

template <class L, int N>
__global__ void __launch_bounds__(kThreads) ppo_loss_kernel(L loss, float* slope, float* partial, int64_t count) {
  SHARED(float, scratch, kThreads / kWarp);
  float sums[L::kSums] = {};
  for (int64_t k = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; k < count; k += int64_t(gridDim.x) * kThreads * N) {
    const auto x = load<N>(loss.x + k), old = load<N>(loss.old + k), goal = load<N>(loss.goal + k), mask = load<N>(loss.mask + k);
    Pack<float, N> y;
#pragma unroll
    for (int i = 0; i < N; ++i) y.v[i] = loss.element(sums, x.v[i], old.v[i], goal.v[i], mask.v[i]);
    store<N>(slope + k, y);
  }
#pragma unroll
  for (int s = 0; s < L::kSums; ++s) {
    const float total = reduce_block<Sum, kThreads>(sums[s], scratch);
    if (threadIdx.x == 0) partial[blockIdx.x * L::kSums + s] = total;
  }
}

template <class L>
void run(const L& loss, float* sums, float* slope, float* partial, int64_t count, CUstream_st* stream) {
  const bool wide = aligned<float>(count, loss.x, loss.old, loss.goal, loss.mask, slope);
  const int64_t blocks = ceil_div<int64_t>(count, kThreads * (wide ? kLanes<float> : 1));
  const int parts = blocks < kPpoParts ? static_cast<int>(blocks) : kPpoParts;
  if (parts > 0 && wide) LAUNCH((ppo_loss_kernel<L, kLanes<float>>), parts, kThreads, 0, stream, loss, slope, partial, count);
  if (parts > 0 && !wide) LAUNCH((ppo_loss_kernel<L, 1>), parts, kThreads, 0, stream, loss, slope, partial, count);
  sum_parts<float>(partial, parts, L::kSums, L::kSums, sums, stream);
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const PpoPolicyLoss& a) {
  cuda::run(cuda::Policy{a.logprobs, a.old_logprobs, a.advantages, a.mask, a.least, a.most}, a.sums, a.slope, a.partial, a.count, on.stream);
}

void run(Cuda on, const PpoValueLoss& a) {
  cuda::run(cuda::Value{a.values, a.old_values, a.returns, a.mask, a.clip}, a.sums, a.slope, a.partial, a.count, on.stream);
}

}  // namespace megagpt
