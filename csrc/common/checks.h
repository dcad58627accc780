// What operators demand of their tensors. Each message names the operator, the tensor and the rule.
#pragma once

#include <ATen/core/Tensor.h>

namespace megagpt {

using Shape = at::IntArrayRef;

inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype) {
  TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " is ", tensor.scalar_type(), "; it must be ", dtype);
}

// The types that common/kernel.h knows.
inline void check_storage_dtype(const char* op, const char* name, const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, op, ": ", name, " is ", dtype,
              "; it must be float32, float16 or bfloat16");
}

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor, Shape shape) {
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, " has shape ", tensor.sizes(), "; it must be ", shape);
}

inline void check_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& other) {
  TORCH_CHECK(tensor.device() == other.device(), op, ": ", name, " is on ", tensor.device(), "; it must be on ", other.device());
}

// This shape, on the device of `other`.
inline void check_tensor(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& other, at::ScalarType dtype, Shape shape) {
  check_dtype(op, name, tensor, dtype);
  check_shape(op, name, tensor, shape);
  check_device(op, name, tensor, other);
}

// Of the type and on the device of `other`.
inline void check_like(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& other, Shape shape) {
  check_tensor(op, name, tensor, other, other.scalar_type(), shape);
}

inline void check_float(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& other, Shape shape) {
  check_tensor(op, name, tensor, other, at::kFloat, shape);
}

// Rows may lie anywhere, but the elements of one row stand side by side.
inline void check_dense_rows(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() >= 1, op, ": ", name, " is a scalar; it must be [..., width]");
  TORCH_CHECK(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, op, ": ", name, " has stride ", tensor.stride(-1),
              " along its last dimension; it must be 1");
}

}  // namespace megagpt
