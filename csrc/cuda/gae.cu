// One warp for each row, 32 * N columns at a time from the row's end. As a function of the advantage x behind it, a stretch of columns has
// advantage B + A x in front: each lane finds (A, B) of its N columns, a scan over the lanes composes them, and each lane then knows its x.
// Bytes: 20 an element, each moved once and 16 at a time where width and addresses allow. The order of all sums is fixed.
#include "ops/gae.h"

#include "cuda/vec.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr int kThreads = 128;

template <int N>
__global__ void __launch_bounds__(kThreads) gae_kernel(Gae a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp, first = row * a.width;
  if (row >= a.rows) return;  // the whole warp
  float value_behind = 0.f, advantage_behind = 0.f;  // of the columns done so far, the leftmost
#pragma unroll 1
  for (int64_t begin = (a.width - 1) / (kWarp * N) * (kWarp * N); begin >= 0; begin -= kWarp * N) {
    const int64_t k = begin + lane * N;
    const bool inside = k < a.width;
    Pack<float, N> reward{}, value{}, mask{};
    if (inside) {
      reward = load<N>(a.rewards + first + k);
      value = load<N>(a.values + first + k);
      mask = load<N>(a.mask + first + k);
    }
    float next_value = __shfl_down_sync(kAllLanes, value.v[0] * mask.v[0], 1);
    if (lane == kWarp - 1) next_value = value_behind;
    value_behind = __shfl_sync(kAllLanes, value.v[0] * mask.v[0], 0);

    float delta[N], slope = 1.f, front = 0.f;
#pragma unroll
    for (int i = N - 1; i >= 0; --i) {
      delta[i] = reward.v[i] + a.gamma * next_value - value.v[i];
      next_value = value.v[i] * mask.v[i];
      front = (delta[i] + a.gamma_lambda * front) * mask.v[i];
      slope *= a.gamma_lambda * mask.v[i];
    }
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const float further_slope = __shfl_down_sync(kAllLanes, slope, distance), further_front = __shfl_down_sync(kAllLanes, front, distance);
      if (lane + distance < kWarp) {
        front += slope * further_front;
        slope *= further_slope;
      }
    }
    front += slope * advantage_behind;
    float next_advantage = __shfl_down_sync(kAllLanes, front, 1);
    if (lane == kWarp - 1) next_advantage = advantage_behind;

    Pack<float, N> advantage, returns;
#pragma unroll
    for (int i = N - 1; i >= 0; --i) {
      advantage.v[i] = next_advantage = (delta[i] + a.gamma_lambda * next_advantage) * mask.v[i];
      returns.v[i] = (next_advantage + value.v[i]) * mask.v[i];
    }
    advantage_behind = __shfl_sync(kAllLanes, next_advantage, 0);
    if (inside) {
      store<N>(a.advantages + first + k, advantage);
      store<N>(a.returns + first + k, returns);
    }
  }
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const Gae& a) {
  using namespace cuda;
  if (a.rows == 0 || a.width == 0) return;
  const unsigned blocks = grid(ceil_div<int64_t>(a.rows, kThreads / kWarp));
  if (aligned<float>(a.width, a.rewards, a.values, a.mask, a.advantages, a.returns)) {
    LAUNCH(gae_kernel<kLanes<float>>, blocks, kThreads, 0, on.stream, a);
  } else {
    LAUNCH(gae_kernel<1>, blocks, kThreads, 0, on.stream, a);
  }
}

}  // namespace megagpt
