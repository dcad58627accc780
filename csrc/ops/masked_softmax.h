// Softmax of scaled attention scores over the keys that a query sees.
//
// A row is one query of one head. It sees key k where k <= query + keys - queries (with `causal`: the last query sees all keys) and where
// mask[batch, k] is 1 (with a mask). Over these columns, with s = scale * x:
//   forward    y = exp(s - max(s)) / sum(exp(s - max(s)))                     0 in all other columns
//   backward   grad_x = scale * y * (grad_y - sum(grad_y * y))                0 in all other columns
//
// x, y, grad_y, grad_x   [batch, heads, queries, keys]   one of the storage types, contiguous
// mask                   [batch, keys]                   bytes, 0 or 1
//
// What a row does not see has no influence on it, NaN included; columns behind the causal limit are not even read. A row that sees nothing
// is zero, with zero gradient. A row that sees NaN, +inf, or -inf only is NaN in the columns that it sees. All outputs are overwritten.
#pragma once

#include "common/kernel.h"

namespace megagpt {

struct MaskedSoftmaxForward {
  const void* x;
  const uint8_t* mask;  // may be null
  void* y;
  int64_t batch, heads, queries, keys;
  float scale;  // positive
  bool causal;
  Dtype dtype;
};

struct MaskedSoftmaxBackward {
  const void *grad_y, *y;
  const uint8_t* mask;  // may be null
  void* grad_x;
  int64_t batch, heads, queries, keys;
  float scale;
  bool causal;
  Dtype dtype;
};

}  // namespace megagpt

MEGAGPT_KERNEL(MaskedSoftmaxForward)
MEGAGPT_KERNEL(MaskedSoftmaxBackward)
