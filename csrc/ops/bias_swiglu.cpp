#include "ops/bias_swiglu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

// The shape of y.
std::vector<int64_t> check_input(const char* op, const Tensor& x, const std::optional<Tensor>& bias) {
  check_storage_dtype(op, "x", x);
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) > 0 && x.size(-1) % 2 == 0, op, ": x has shape ", x.sizes(),
              "; it must be [..., 2 * width] with width > 0");
  if (bias) check_like(op, "bias", *bias, x, {x.size(-1)});
  auto shape = x.sizes().vec();
  shape.back() /= 2;
  return shape;
}

Tensor forward(const Tensor& x_any, const std::optional<Tensor>& bias_any) {
  const auto shape = check_input("bias_swiglu_forward", x_any, bias_any);
  const auto x = x_any.contiguous(), y = at::empty(shape, x.options());
  const auto bias = contiguous(bias_any);
  launch(BiasSwigluForward{data(x), data(bias), out(y), y.numel() / shape.back(), shape.back(), dtype_of(x)}, x);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_y_any, const Tensor& x_any, const std::optional<Tensor>& bias_any) {
  constexpr const char* op = "bias_swiglu_backward";
  const auto shape = check_input(op, x_any, bias_any);
  check_like(op, "grad_y", grad_y_any, x_any, shape);
  const auto grad_y = grad_y_any.contiguous(), x = x_any.contiguous(), grad_x = at::empty_like(x);
  const auto bias = contiguous(bias_any);
  const int64_t width = shape.back();
  const auto grad_bias = at::empty({bias ? 2 * width : 0}, x.options());
  const auto partial = scratch({bias ? kColumnParts : 0, 2 * width}, x);
  launch(BiasSwigluBackward{data(grad_y), data(x), data(bias), out(grad_x), bias ? out(grad_bias) : nullptr, out<float>(partial),
                            grad_y.numel() / width, width, dtype_of(x)},
         x);
  return {grad_x, grad_bias};
}

void implement(torch::Library& m) {
  m.impl("bias_swiglu_forward", forward);
  m.impl("bias_swiglu_backward", backward);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("bias_swiglu_forward(Tensor x, Tensor? bias) -> Tensor");
  m.def("bias_swiglu_backward(Tensor grad_y, Tensor x, Tensor? bias) -> (Tensor grad_x, Tensor grad_bias)");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
