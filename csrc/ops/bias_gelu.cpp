#include "ops/bias_gelu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

void check_input(const char* op, const Tensor& x, const std::optional<Tensor>& bias) {
  check_storage_dtype(op, "x", x);
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) > 0, op, ": x has shape ", x.sizes(), "; it must be [..., width] with width > 0");
  if (bias) check_like(op, "bias", *bias, x, {x.size(-1)});
}

Tensor forward(const Tensor& x_any, const std::optional<Tensor>& bias_any, bool tanh) {
  check_input("bias_gelu_forward", x_any, bias_any);
  const auto x = x_any.contiguous(), y = at::empty_like(x);
  const auto bias = contiguous(bias_any);
  launch(BiasGeluForward{data(x), data(bias), out(y), x.numel() / x.size(-1), x.size(-1), tanh, dtype_of(x)}, x);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_y_any, const Tensor& x_any, const std::optional<Tensor>& bias_any, bool tanh) {
  constexpr const char* op = "bias_gelu_backward";
  check_input(op, x_any, bias_any);
  check_like(op, "grad_y", grad_y_any, x_any, x_any.sizes());
  const auto grad_y = grad_y_any.contiguous(), x = x_any.contiguous(), grad_x = at::empty_like(x);
  const auto bias = contiguous(bias_any);
  const int64_t width = x.size(-1);
  const auto grad_bias = at::empty({bias ? width : 0}, x.options());
  const auto partial = scratch({bias ? kColumnParts : 0, width}, x);
  launch(BiasGeluBackward{data(grad_y), data(x), data(bias), out(grad_x), bias ? out(grad_bias) : nullptr, out<float>(partial), x.numel() / width,
                          width, tanh, dtype_of(x)},
         x);
  return {grad_x, grad_bias};
}

void implement(torch::Library& m) {
  m.impl("bias_gelu_forward", forward);
  m.impl("bias_gelu_backward", backward);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("bias_gelu_forward(Tensor x, Tensor? bias, bool tanh) -> Tensor");
  m.def("bias_gelu_backward(Tensor grad_y, Tensor x, Tensor? bias, bool tanh) -> (Tensor grad_x, Tensor grad_bias)");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
