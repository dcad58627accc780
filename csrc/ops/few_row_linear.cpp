#include "ops/few_row_linear.h"

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

void few_row_linear(const Tensor& x_any, const Tensor& weight_any, const std::optional<Tensor>& bias_any, const Tensor& y) {
  constexpr const char* op = "few_row_linear";
  TORCH_CHECK(x_any.dim() == 2, op, ": x has shape ", x_any.sizes(), "; it must be [rows, inputs]");
  TORCH_CHECK(weight_any.dim() == 2, op, ": weight has shape ", weight_any.sizes(), "; it must be [outputs, inputs]");
  const auto rows = x_any.size(0), inputs = x_any.size(1), outputs = weight_any.size(0);
  check_dtype(op, "x", x_any, at::kFloat);
  check_like(op, "weight", weight_any, x_any, {outputs, inputs});
  if (bias_any) check_like(op, "bias", *bias_any, x_any, {outputs});
  check_like(op, "y", y, x_any, {rows, outputs});
  TORCH_CHECK(y.is_contiguous(), op, ": y must be contiguous, since it is overwritten");
  const auto x = x_any.contiguous(), weight = weight_any.contiguous();
  const auto bias = contiguous(bias_any);
  launch_on_cpu(FewRowLinear{data<float>(x), data<float>(weight), data<float>(bias), out<float>(y), rows, inputs, outputs});
}

void implement(torch::Library& m) { m.impl("few_row_linear", few_row_linear); }

}  // namespace

MEGAGPT_SCHEMAS(m) { m.def("few_row_linear(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y) -> ()"); }

MEGAGPT_CPU_IMPLEMENTATIONS(implement)

}  // namespace megagpt
