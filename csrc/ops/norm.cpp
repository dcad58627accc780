#include "ops/norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

void check_rows(const char* op, const Tensor& x, const Tensor& weight) {
  check_storage_dtype(op, "x", x);
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) > 0, op, ": x has shape ", x.sizes(), "; it must be [..., width] with width > 0");
  check_like(op, "weight", weight, x, {x.size(-1)});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x_any, const std::optional<Tensor>& residual_any, const Tensor& weight_any,
                                                   const std::optional<Tensor>& bias_any, double eps, bool center) {
  constexpr const char* op = "norm_forward";
  check_rows(op, x_any, weight_any);
  if (residual_any) check_like(op, "residual", *residual_any, x_any, x_any.sizes());
  if (bias_any) check_like(op, "bias", *bias_any, x_any, weight_any.sizes());
  TORCH_CHECK(eps > 0, op, ": eps is ", eps, "; it must be positive");
  const auto x = x_any.contiguous(), weight = weight_any.contiguous();
  const auto residual = contiguous(residual_any), bias = contiguous(bias_any);
  const auto rows = x.sizes().slice(0, x.dim() - 1);
  const auto y = at::empty_like(x), sum = residual ? at::empty_like(x) : at::empty({0}, x.options());
  const auto rstd = at::empty(rows, x.options().dtype(at::kFloat));
  const auto mean = center ? at::empty_like(rstd) : at::empty({0}, rstd.options());
  launch(NormForward{data(x), data(residual), data(weight), data(bias), out(y), out(sum), out<float>(mean), out<float>(rstd), rstd.numel(),
                     x.size(-1), static_cast<float>(eps), center, dtype_of(x)},
         x);
  return {y, sum, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_y_any, const std::optional<Tensor>& grad_sum_any, const Tensor& sum_any,
                                            const Tensor& weight_any, const Tensor& mean_any, const Tensor& rstd_any, bool center) {
  constexpr const char* op = "norm_backward";
  check_rows(op, sum_any, weight_any);
  check_like(op, "grad_y", grad_y_any, sum_any, sum_any.sizes());
  if (grad_sum_any) check_like(op, "grad_sum", *grad_sum_any, sum_any, sum_any.sizes());
  const auto rows = sum_any.sizes().slice(0, sum_any.dim() - 1);
  check_float(op, "rstd", rstd_any, sum_any, rows);
  if (center) check_float(op, "mean", mean_any, sum_any, rows);
  const auto grad_y = grad_y_any.contiguous(), sum = sum_any.contiguous(), weight = weight_any.contiguous();
  const auto mean = mean_any.contiguous(), rstd = rstd_any.contiguous();
  const auto grad_sum = contiguous(grad_sum_any);
  const auto grad_x = at::empty_like(sum), grad_weight = at::empty_like(weight);
  const auto grad_bias = center ? at::empty_like(weight) : at::empty({0}, weight.options());
  const auto partial = scratch({kNormParts, 2, sum.size(-1)}, sum);
  launch(NormBackward{data(grad_y), data(grad_sum), data(sum), data(weight), data<float>(mean), data<float>(rstd), out(grad_x), out(grad_weight),
                      center ? out(grad_bias) : nullptr, out<float>(partial), rstd.numel(), sum.size(-1), center, dtype_of(sum)},
         sum);
  return {grad_x, grad_weight, grad_bias};
}

void implement(torch::Library& m) {
  m.impl("norm_forward", forward);
  m.impl("norm_backward", backward);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("norm_forward(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool center) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)");
  m.def(
      "norm_backward(Tensor grad_y, Tensor? grad_sum, Tensor sum, Tensor weight, Tensor mean, Tensor rstd, bool center) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
