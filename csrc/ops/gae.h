// Generalised advantage estimation (Schulman et al. 2016, eq. 16): a scan of each row from its end.
//
// With V = value * mask, and next of a column the one to its right (0 behind the last):
//   delta     = reward + gamma * next V - value
//   advantage = (delta + gamma * lambda * next advantage) * mask
//   returns   = (advantage + value) * mask
//
// rewards, values, mask, advantages, returns   [rows, width]   float32, contiguous; mask is 1 on the response's tokens and 0 elsewhere
//
// All outputs are overwritten.
#pragma once

#include "common/kernel.h"

namespace megagpt {

struct Gae {
  const float *rewards, *values, *mask;
  float *advantages, *returns;
  int64_t rows, width;
  float gamma, gamma_lambda;
};

}  // namespace megagpt

MEGAGPT_KERNEL(Gae)
