// PPO's two losses, as sums over the tokens that the mask shows, each with the sums to report and the slope of the loss for backward.
//
// Policy (Schulman et al. 2017, eq. 7), with rho = exp((logprob - old_logprob) * mask) and clipped = clip(rho, 1 - eps, 1 + eps):
//   sums[0]  the loss, - sum of min(rho A, clipped A) * mask
//   sums[1]  how many tokens were clipped         sums[2]  sum of |rho - 1|         sums[3]  sum of rho - 1 - log rho
//   slope    d loss / d logprob
// Value, with clipped = old_value + clip(value - old_value, -eps, eps):
//   sums[0]  the loss, 1/2 sum of max((value - R)^2, (clipped - R)^2) * mask         sums[1]  sum of (value - R)^2 * mask
//   slope    d loss / d value
//
// Where the two sides of min or max are equal, each passes half of the gradient on, and clip passes it on up to and on its bounds: as in torch.
//
// inputs, slope   [count]         float32, contiguous; mask is 1 on the response's tokens and 0 elsewhere
// sums            [4] or [2]      float32
//
// All outputs are overwritten.
#pragma once

#include "common/kernel.h"

namespace megagpt {

struct PpoPolicyLoss {
  const float *logprobs, *old_logprobs, *advantages, *mask;
  float *sums, *slope;
  float* partial;  // [kPpoParts, 4] scratch, used on CUDA only
  int64_t count;
  float least, most;  // 1 - eps, 1 + eps
};

struct PpoValueLoss {
  const float *values, *old_values, *returns, *mask;
  float *sums, *slope;
  float* partial;  // [kPpoParts, 2] scratch, used on CUDA only
  int64_t count;
  float clip;  // eps
};

// Blocks that share the elements on CUDA, each with sums of its own. The number is fixed, so that the same input gives the same bits on any device.
constexpr int kPpoParts = 264;

}  // namespace megagpt

MEGAGPT_KERNEL(PpoPolicyLoss)
MEGAGPT_KERNEL(PpoValueLoss)
