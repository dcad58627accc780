#include "ops/masked_softmax.h"

#include <ATen/ops/empty_like.h>

#include <cmath>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

void check_scores(const char* op, const char* name, const Tensor& x, const std::optional<Tensor>& mask, double scale) {
  check_storage_dtype(op, name, x);
  TORCH_CHECK(x.dim() == 4, op, ": ", name, " has shape ", x.sizes(), "; it must be [batch, heads, queries, keys]");
  if (mask) check_tensor(op, "mask", *mask, x, at::kBool, {x.size(0), x.size(3)});
  const auto rounded = static_cast<float>(scale);
  TORCH_CHECK(rounded > 0 && std::isfinite(rounded), op, ": scale is ", scale, "; it must be positive and finite in float32");
}

Tensor forward(const Tensor& x_any, const std::optional<Tensor>& mask_any, double scale, bool causal) {
  check_scores("masked_softmax_forward", "x", x_any, mask_any, scale);
  const auto x = x_any.contiguous();
  const auto mask = contiguous(mask_any);
  const auto y = at::empty_like(x);
  launch(MaskedSoftmaxForward{data(x), data<uint8_t>(mask), out(y), x.size(0), x.size(1), x.size(2), x.size(3), static_cast<float>(scale), causal,
                              dtype_of(x)},
         x);
  return y;
}

Tensor backward(const Tensor& grad_y_any, const Tensor& y_any, const std::optional<Tensor>& mask_any, double scale, bool causal) {
  constexpr const char* op = "masked_softmax_backward";
  check_scores(op, "y", y_any, mask_any, scale);
  check_like(op, "grad_y", grad_y_any, y_any, y_any.sizes());
  const auto grad_y = grad_y_any.contiguous(), y = y_any.contiguous();
  const auto mask = contiguous(mask_any);
  const auto grad_x = at::empty_like(y);
  launch(MaskedSoftmaxBackward{data(grad_y), data(y), data<uint8_t>(mask), out(grad_x), y.size(0), y.size(1), y.size(2), y.size(3),
                               static_cast<float>(scale), causal, dtype_of(y)},
         y);
  return grad_x;
}

void implement(torch::Library& m) {
  m.impl("masked_softmax_forward", forward);
  m.impl("masked_softmax_backward", backward);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("masked_softmax_forward(Tensor x, Tensor? mask, float scale, bool causal) -> Tensor y");
  m.def("masked_softmax_backward(Tensor grad_y, Tensor y, Tensor? mask, float scale, bool causal) -> Tensor grad_x");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
