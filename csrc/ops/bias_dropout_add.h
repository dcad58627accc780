// Dropout (Srivastava et al. 2014) of x + bias before the residual addition, with masks that are computed again where they are needed.
//
//   forward    y = residual + m * (x + bias)
//   backward   grad_x = grad_y * m      grad_bias = sum over rows of grad_x      (grad_residual = grad_y)
//
// x, residual, y, grad_y, grad_x   [positions, batch, width]  one of the storage types, contiguous; row r: position r / batch of sequence r % batch
// bias, grad_bias                  [width]                    the same type
//
// m is `scale` where an element is kept and else 0. Element e = first + position * width + feature of the sequence with number row_ids[b] draws word
// e % 4 of philox(counter = (e / 4, row_ids[b]), key), and is kept if its upper 24 bits are below `threshold`. So the mask of an element depends
// neither on the batch that it is computed in nor on how positions are shared between ranks. Sums are not rounded to the storage type before
// they are complete. All outputs are overwritten.
#pragma once

#include "common/columns.h"
#include "common/kernel.h"

namespace megagpt {

struct DropoutMask {
  const int64_t* row_ids;  // [batch]
  uint64_t key, first;
  uint32_t threshold;      // in [1, 2^24]
  float scale;
  int64_t batch;
};

struct BiasDropoutAddForward {
  const void *x, *bias, *residual;  // bias may be null
  void* y;
  DropoutMask mask;
  int64_t rows, width;              // rows = positions * batch, less than 2^31
  Dtype dtype;
};

struct BiasDropoutAddBackward {
  const void* grad_y;               // null: all ones, so that grad_x is the mask
  void *grad_x, *grad_bias;         // grad_bias may be null
  float* partial;                   // [kColumnParts, width] scratch, used on CUDA only, and for grad_bias only
  DropoutMask mask;
  int64_t rows, width;
  Dtype dtype;
};

}  // namespace megagpt

MEGAGPT_KERNEL(BiasDropoutAddForward)
MEGAGPT_KERNEL(BiasDropoutAddBackward)
