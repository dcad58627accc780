#include "ops/rotary.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/select.h>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

Tensor rotary(const Tensor& x_any, const Tensor& positions_any, const Tensor& cos_any, const Tensor& sin_any, bool interleaved, bool inverse) {
  constexpr const char* op = "rotary";
  check_storage_dtype(op, "x", x_any);
  TORCH_CHECK(x_any.dim() >= 2 && x_any.size(-1) > 0, op, ": x has shape ", x_any.sizes(), "; it must be [..., heads, width] with width > 0");
  const auto leading = x_any.sizes().slice(0, x_any.dim() - 2);
  check_tensor(op, "positions", positions_any, x_any, at::kLong, leading);
  TORCH_CHECK(cos_any.dim() == 2 && cos_any.size(0) > 0 && 2 * cos_any.size(1) <= x_any.size(-1), op, ": cos has shape ", cos_any.sizes(),
              "; it must be [max_position, size / 2] with max_position > 0 and size <= ", x_any.size(-1));
  check_float(op, "cos", cos_any, x_any, cos_any.sizes());
  check_float(op, "sin", sin_any, x_any, cos_any.sizes());
  const auto x = x_any.size(-1) == 1 || x_any.stride(-1) == 1 ? x_any : x_any.contiguous();
  const auto positions = positions_any.contiguous(), cos = cos_any.contiguous(), sin = sin_any.contiguous();
  const auto y = at::empty(x.sizes(), x.options());
  if (y.numel() == 0) return y;
  launch(Rotary{data(x), rows_of(op, "x", x.select(-2, 0)), x.stride(-2), data<int64_t>(positions), data<float>(cos), data<float>(sin), out(y),
                positions.numel(), x.size(-2), x.size(-1), 2 * cos.size(1), cos.size(0), interleaved, inverse, dtype_of(x)},
         x);
  return y;
}

void implement(torch::Library& m) { m.impl("rotary", rotary); }

}  // namespace

MEGAGPT_SCHEMAS(m) { m.def("rotary(Tensor x, Tensor positions, Tensor cos, Tensor sin, bool interleaved, bool inverse) -> Tensor y"); }

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
