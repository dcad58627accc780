// y = x w^T + bias for the few rows of a decoding step: inference only, on a CPU.
//
// A general matrix product rearranges the weights before it multiplies, which for a few rows takes longer than the product. Here every weight is
// read once and meets all rows at the same time: a vector holds the same input of every row.
//
// x        [rows, inputs]     float32, contiguous
// weight   [outputs, inputs]  float32, contiguous
// bias     [outputs]          float32; absent: none
// y        [rows, outputs]    float32; overwritten. A row's numbers do not depend on the other rows, nor on the threads.
#pragma once

#include "common/kernel.h"

namespace megagpt {

struct FewRowLinear {
  const float *x, *weight, *bias;
  float* y;
  int64_t rows, inputs, outputs;
};

}  // namespace megagpt

MEGAGPT_KERNEL(FewRowLinear)
