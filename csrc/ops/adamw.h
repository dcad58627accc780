// AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2) on many tensors at once, in place.
//
// With g = grad * grad_scale and t the number of this update, counted from 1:
//   exp_avg    = exp_avg + (1 - beta1) * (g - exp_avg)
//   exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
//   param      = param * (1 - lr * weight_decay) - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)
//   copy       = param, rounded
// What does not depend on an element is computed in double and rounded once. Operations and their order are those of torch's fused AdamW on a
// CPU, so that the two agree to a rounding.
//
// param, exp_avg, exp_avg_sq   any shape   float32, contiguous, read and written
// grad                         the same    a storage type, one for all tensors
// copy                         the same    float16 or bfloat16, overwritten
// grad_scale, overflow         [1]         float32; with an overflow other than 0 (NaN too) nothing is changed. Both are read where the kernel runs.
#pragma once

#include "common/kernel.h"

namespace megagpt {

struct AdamWTensor {
  float* param;
  const void* grad;
  float *exp_avg, *exp_avg_sq;
  void* copy;  // null where there are no copies
  int64_t size;
};

struct AdamW {
  const AdamWTensor* tensors;  // no two share memory
  int64_t num_tensors;
  const float *grad_scale, *overflow;  // both may be null
  float decay;       // 1 - lr * weight_decay
  float one_minus_beta1, beta2, one_minus_beta2;
  float correction;  // sqrt(1 - beta2^t)
  float eps;
  float step_size;   // lr / (1 - beta1^t)
  Dtype grad_dtype, copy_dtype;  // f32: there are no copies
};

}  // namespace megagpt

MEGAGPT_KERNEL(AdamW)
