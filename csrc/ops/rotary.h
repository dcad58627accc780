// Rotary position embedding: each pair of columns (u, v) of a head is turned by the angle of its token's position and of its frequency.
//
// With c and s the cosine and sine of row positions[token] and column i of the table:
//   u' = u * c - v * s      v' = v * c + u * s         (inverse: with -s, which is also the gradient)
// where u, v are the columns i and i + size / 2 (halves), or 2 * i and 2 * i + 1 (interleaved). Columns from `size` on are copied.
//
// x           [tokens, heads, width]   one of the storage types; tokens and heads may lie anywhere, the columns side by side
// y           [tokens, heads, width]   the same type, contiguous, overwritten
// positions   [tokens]                 int64
// cos, sin    [max_position, size / 2] float32, contiguous; the sums are float32 as well
//
// A position outside the table is an error on the CPU. On CUDA, where nobody could be told, it takes the nearest row of the table.
#pragma once

#include "common/kernel.h"
#include "common/rows.h"

namespace megagpt {

struct Rotary {
  const void* x;
  Rows x_tokens;         // first head of each token
  int64_t x_head_stride;
  const int64_t* positions;
  const float *cos, *sin;
  void* y;
  int64_t tokens, heads, width, size, max_position;
  bool interleaved, inverse;
  Dtype dtype;
};

}  // namespace megagpt

MEGAGPT_KERNEL(Rotary)
