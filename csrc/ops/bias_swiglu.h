// SwiGLU (Shazeer 2020, eq. 6) of the two halves [gate; up] of x + bias, or of x alone.
//
// With a = gate + bias_gate, b = up + bias_up, s = 1 / (1 + exp(-a)):
//   forward    y = a * s * b
//   backward   grad_gate = grad_y * b * (s + a * s * (1 - s))      grad_up = grad_y * a * s      grad_bias = sum over rows of both
//
// x, grad_x         [rows, 2 * width]  one of the storage types, contiguous; each row holds all of gate, then all of up
// y, grad_y         [rows, width]      the same type
// bias, grad_bias   [2 * width]        the same type
//
// a and b are not rounded to the storage type, and grad_bias sums grad_x before it is. All outputs are overwritten.
// Infinite a: as in PyTorch, SiLU gives +inf and NaN, its slope NaN at both.
#pragma once

#include "common/columns.h"
#include "common/kernel.h"

namespace megagpt {

struct BiasSwigluForward {
  const void *x, *bias;  // bias may be null
  void* y;
  int64_t rows, width;
  Dtype dtype;
};

struct BiasSwigluBackward {
  const void *grad_y, *x, *bias;
  void *grad_x, *grad_bias;  // grad_bias is null where bias is
  float* partial;            // [kColumnParts, 2 * width] scratch, used on CUDA only, and for grad_bias only
  int64_t rows, width;
  Dtype dtype;
};

}  // namespace megagpt

MEGAGPT_KERNEL(BiasSwigluForward)
MEGAGPT_KERNEL(BiasSwigluBackward)
