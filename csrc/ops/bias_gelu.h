// GELU of v = x + bias, or of x alone (Hendrycks & Gimpel 2016).
//
//   exact       y = v * P(v)                       P(v) = (1 + erf(v / sqrt(2))) / 2, the normal distribution
//               grad_x = grad_y * (P(v) + v * p(v))              p = its density
//   tanh        y = v * s(2 u(v))                  u(v) = sqrt(2 / pi) * (v + 0.044715 v^3), s(t) = 1 / (1 + exp(-t)) = (1 + tanh(t / 2)) / 2
//               grad_x = grad_y * (s + v * s * (1 - s) * 2 u'(v))
//   both        grad_bias = sum over rows of grad_x
//
// x, y, grad_y, grad_x   [rows, width]  one of the storage types, contiguous
// bias, grad_bias        [width]        the same type
//
// v is not rounded to the storage type, and grad_bias sums grad_x before it is. All outputs are overwritten.
// At large |v| the limits hold: y is -0 or v, the slope 0 or 1. As in PyTorch, +inf gives +inf, -inf gives NaN, and the slope at both is NaN.
#pragma once

#include "common/columns.h"
#include "common/kernel.h"

namespace megagpt {

struct BiasGeluForward {
  const void *x, *bias;  // bias may be null
  void* y;
  int64_t rows, width;
  bool tanh;
  Dtype dtype;
};

struct BiasGeluBackward {
  const void *grad_y, *x, *bias;
  void *grad_x, *grad_bias;  // grad_bias is null where bias is
  float* partial;            // [kColumnParts, width] scratch, used on CUDA only, and for grad_bias only
  int64_t rows, width;
  bool tanh;
  Dtype dtype;
};

}  // namespace megagpt

MEGAGPT_KERNEL(BiasGeluForward)
MEGAGPT_KERNEL(BiasGeluBackward)
