// LayerNorm (center) and RMSNorm (not center) of each row of s = x + residual, or of x alone.
//
// With n the width:   mean = sum(s) / n, or 0 without center      rstd = 1 / sqrt(sum((s - mean)^2) / n + eps)      h = (s - mean) * rstd
//   forward    y = h * weight + bias
//   backward   g = grad_y * weight
//              grad_x = rstd * (g - mean(g) - h * mean(g * h)) + grad_sum, without the term mean(g) where nothing is centred
//              grad_weight = sum over rows of grad_y * h      grad_bias = sum over rows of grad_y
//
// x, residual, y, sum, grad_y, grad_sum, grad_x   [rows, width]  one of the storage types, contiguous
// weight, bias, grad_weight, grad_bias            [width]        the same type
// mean, rstd                                      [rows]         float32
//
// sum is x + residual rounded to the storage type, and what the norm is computed of. All outputs are overwritten.
#pragma once

#include "common/kernel.h"

namespace megagpt {

struct NormForward {
  const void *x, *residual;    // residual may be null: then sum is not written
  const void *weight, *bias;   // bias may be null
  void *y, *sum;
  float *mean, *rstd;          // mean is not written without center
  int64_t rows, width;
  float eps;
  bool center;
  Dtype dtype;
};

struct NormBackward {
  const void *grad_y, *grad_sum;  // grad_sum may be null
  const void *sum, *weight;
  const float *mean, *rstd;       // mean is not read without center
  void *grad_x, *grad_weight, *grad_bias;  // grad_bias may be null
  float* partial;                 // [kNormParts, 2, width] scratch, used on CUDA only
  int64_t rows, width;
  bool center;
  Dtype dtype;
};

// Blocks that share the rows of the backward pass on CUDA, each with sums of its own: two for each multiprocessor of an H100. The number is
// fixed, so that the same rows give the same bits on any device.
constexpr int kNormParts = 264;

}  // namespace megagpt

MEGAGPT_KERNEL(NormForward)
MEGAGPT_KERNEL(NormBackward)
