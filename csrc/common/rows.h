// Rows of a tensor [..., width] whose leading dimensions may have any strides, counted in the order of the shape. A transpose or a slice
// such as logits[:, :-1] is then read where it lies instead of being copied first.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MEGAGPT_BOTH __host__ __device__
#else
#define MEGAGPT_BOTH
#endif

namespace megagpt {

struct Rows {
  static constexpr int kMaxDims = 4;
  int64_t sizes[kMaxDims], strides[kMaxDims];  // of the leading dimensions, outermost first; strides in elements
  int32_t dims;

  // Elements from the first row to this one.
  MEGAGPT_BOTH int64_t offset(int64_t row) const {
    int64_t offset = 0;
    for (int dim = dims - 1; dim > 0; --dim) {
      offset += row % sizes[dim] * strides[dim];
      row /= sizes[dim];
    }
    return dims > 0 ? offset + row * strides[0] : offset;
  }
};

}  // namespace megagpt
