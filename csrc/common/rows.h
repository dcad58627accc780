// Row r of a tensor [..., width] whose leading dimensions may have any strides, rows counted in the order of the shape.
// A transpose or a slice such as logits[:, :-1] is then read where it lies instead of being copied first.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

namespace megagpt {

class RowOffsets {
 public:
  explicit RowOffsets(const at::Tensor& tensor)
      : sizes_(tensor.sizes().begin(), tensor.sizes().end() - 1), strides_(tensor.strides().begin(), tensor.strides().end() - 1) {}

  int64_t operator[](int64_t row) const {
    int64_t offset = 0;
    for (size_t dim = sizes_.size(); dim-- > 0; row /= sizes_[dim]) offset += row % sizes_[dim] * strides_[dim];
    return offset;
  }

 private:
  c10::SmallVector<int64_t, 4> sizes_, strides_;
};

}  // namespace megagpt
