#include "ops/bias_dropout_add.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cmath>

#include "common/launch.h"
#include "common/philox.h"

namespace megagpt {
namespace {

using at::Tensor;

// The known answers of the authors' own code (Random123, tests/kat_vectors).
constexpr bool gives(PhiloxWords actual, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return actual.v[0] == a && actual.v[1] == b && actual.v[2] == c && actual.v[3] == d;
}
static_assert(gives(philox(0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
static_assert(gives(philox(~0ull, ~0ull, ~0ull), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
static_assert(gives(philox(0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822), 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));

DropoutMask mask_of(const char* op, double p, int64_t key, const Tensor& row_ids, int64_t first) {
  TORCH_CHECK(p >= 0 && p < 1, op, ": p is ", p, "; it must be in [0, 1)");
  TORCH_CHECK(first >= 0, op, ": first is ", first, "; it must be at least 0");
  const double keep = 1 - p;
  return {data<int64_t>(row_ids), static_cast<uint64_t>(key), static_cast<uint64_t>(first), static_cast<uint32_t>(std::ceil(std::ldexp(keep, 24))),
          static_cast<float>(1 / keep), row_ids.numel()};
}

void check_hidden(const char* op, const char* name, const Tensor& x, const Tensor& row_ids) {
  check_storage_dtype(op, name, x);
  TORCH_CHECK(x.dim() == 3 && x.size(2) > 0, op, ": ", name, " has shape ", x.sizes(), "; it must be [positions, batch, width] with width > 0");
  TORCH_CHECK(x.size(0) * x.size(1) < (int64_t{1} << 31), op, ": ", name, " has shape ", x.sizes(), "; positions * batch must be less than 2^31");
  check_tensor(op, "row_ids", row_ids, x, at::kLong, {x.size(1)});
}

Tensor forward(const Tensor& x_any, const std::optional<Tensor>& bias_any, const Tensor& residual_any, double p, int64_t key,
               const Tensor& row_ids_any, int64_t first) {
  constexpr const char* op = "bias_dropout_add_forward";
  check_hidden(op, "x", x_any, row_ids_any);
  check_like(op, "residual", residual_any, x_any, x_any.sizes());
  if (bias_any) check_like(op, "bias", *bias_any, x_any, {x_any.size(2)});
  const auto x = x_any.contiguous(), residual = residual_any.contiguous(), row_ids = row_ids_any.contiguous(), y = at::empty_like(x);
  const auto bias = contiguous(bias_any);
  launch(BiasDropoutAddForward{data(x), data(bias), data(residual), out(y), mask_of(op, p, key, row_ids, first), x.size(0) * x.size(1), x.size(2),
                               dtype_of(x)},
         x);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_y_any, double p, int64_t key, const Tensor& row_ids_any, int64_t first, bool has_bias) {
  constexpr const char* op = "bias_dropout_add_backward";
  check_hidden(op, "grad_y", grad_y_any, row_ids_any);
  const auto grad_y = grad_y_any.contiguous(), row_ids = row_ids_any.contiguous(), grad_x = at::empty_like(grad_y);
  const int64_t width = grad_y.size(2);
  const auto grad_bias = at::empty({has_bias ? width : 0}, grad_y.options());
  const auto partial = scratch({has_bias ? kColumnParts : 0, width}, grad_y);
  launch(BiasDropoutAddBackward{data(grad_y), out(grad_x), has_bias ? out(grad_bias) : nullptr, out<float>(partial),
                                mask_of(op, p, key, row_ids, first), grad_y.size(0) * grad_y.size(1), width, dtype_of(grad_y)},
         grad_y);
  return {grad_x, grad_bias};
}

Tensor mask(const Tensor& row_ids_any, at::ScalarType dtype, int64_t count, double p, int64_t key, int64_t first) {
  constexpr const char* op = "dropout_mask";
  check_dtype(op, "row_ids", row_ids_any, at::kLong);
  TORCH_CHECK(row_ids_any.dim() == 1, op, ": row_ids has shape ", row_ids_any.sizes(), "; it must be [batch]");
  TORCH_CHECK(count > 0, op, ": count is ", count, "; it must be positive");
  const auto row_ids = row_ids_any.contiguous(), m = at::empty({row_ids.numel(), count}, row_ids.options().dtype(dtype));
  check_storage_dtype(op, "the mask", m);
  launch(BiasDropoutAddBackward{nullptr, out(m), nullptr, nullptr, mask_of(op, p, key, row_ids, first), row_ids.numel(), count, dtype_of(m)}, m);
  return m;
}

void implement(torch::Library& m) {
  m.impl("bias_dropout_add_forward", forward);
  m.impl("bias_dropout_add_backward", backward);
  m.impl("dropout_mask", mask);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("bias_dropout_add_forward(Tensor x, Tensor? bias, Tensor residual, float p, int key, Tensor row_ids, int first) -> Tensor");
  m.def("bias_dropout_add_backward(Tensor grad_y, float p, int key, Tensor row_ids, int first, bool has_bias) -> (Tensor grad_x, Tensor grad_bias)");
  m.def("dropout_mask(Tensor row_ids, ScalarType dtype, int count, float p, int key, int first) -> Tensor");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
