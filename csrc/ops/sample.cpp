#include "ops/sample.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> sample(const Tensor& logits, const Tensor& draws_any, double temperature, int64_t top_k, double top_p) {
  constexpr const char* op = "sample";
  check_storage_dtype(op, "logits", logits);
  check_dense_rows(op, "logits", logits);
  const auto width = logits.size(-1);
  TORCH_CHECK(width > 0 && width <= sampling::kMaxWidth, op, ": logits has shape ", logits.sizes(), "; its width must be in [1, ",
              sampling::kMaxWidth, "]");
  check_tensor(op, "draws", draws_any, logits, at::kDouble, logits.sizes().slice(0, logits.dim() - 1));
  const bool greedy = temperature == 0;
  const auto scale = greedy ? 1.f : static_cast<float>(1 / temperature);
  TORCH_CHECK(temperature >= 0 && scale > 0 && std::isfinite(scale), op, ": temperature is ", temperature,
              "; it must be 0 (greedy), or positive and finite in float32, as its inverse");
  TORCH_CHECK(top_k >= 0, op, ": top_k is ", top_k, "; it must be 0 (off) or more");
  TORCH_CHECK(top_p > 0 && top_p <= 1, op, ": top_p is ", top_p, "; it must be in (0, 1]");
  const auto draws = draws_any.contiguous();
  const auto tokens = at::empty(draws.sizes(), draws.options().dtype(at::kLong));
  const auto logprobs = at::empty(draws.sizes(), draws.options().dtype(at::kFloat));
  launch(Sample{data(logits), rows_of(op, "logits", logits), data<double>(draws), out<int64_t>(tokens), out<float>(logprobs), draws.numel(), width,
                scale, top_k == 0 ? width : std::min(top_k, width), top_p, greedy, dtype_of(logits)},
         logits);
  return {tokens, logprobs};
}

void implement(torch::Library& m) { m.impl("sample", sample); }

}  // namespace

MEGAGPT_SCHEMAS(m) { m.def("sample(Tensor logits, Tensor draws, float temperature, int top_k, float top_p) -> (Tensor tokens, Tensor logprobs)"); }

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
