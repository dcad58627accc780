#include "ops/token_logprob.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cmath>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

void check_inputs(const char* op, const Tensor& logits, const Tensor& ids, int64_t num_valid, double scale) {
  check_storage_dtype(op, "logits", logits);
  check_dense_rows(op, "logits", logits);
  check_tensor(op, "ids", ids, logits, at::kLong, logits.sizes().slice(0, logits.dim() - 1));
  TORCH_CHECK(num_valid >= 0 && num_valid <= logits.size(-1), op, ": num_valid is ", num_valid, "; it must be in [0, ", logits.size(-1), "]");
  TORCH_CHECK(scale > 0 && std::isfinite(static_cast<float>(scale)), op, ": scale is ", scale, "; it must be positive and finite in float32");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& ids_any, int64_t num_valid, double scale, bool entropy) {
  constexpr const char* op = "token_logprob_forward";
  check_inputs(op, logits, ids_any, num_valid, scale);
  const auto ids = ids_any.contiguous();
  const auto top = at::empty(ids.sizes(), logits.options().dtype(at::kFloat));
  const auto sum_exp = at::empty_like(top), target = at::empty_like(top), weighted = entropy ? at::empty_like(top) : at::empty({0}, top.options());
  launch(TokenLogprobForward{data(logits), rows_of(op, "logits", logits), data<int64_t>(ids), out<float>(top), out<float>(sum_exp),
                             out<float>(target), entropy ? out<float>(weighted) : nullptr, ids.numel(), num_valid, static_cast<float>(scale),
                             dtype_of(logits)},
         logits);
  return {top, sum_exp, target, weighted};
}

Tensor backward(const std::optional<Tensor>& grad_logprob_any, const std::optional<Tensor>& grad_lse_any,
                const std::optional<Tensor>& grad_entropy_any, const Tensor& logits, const Tensor& ids_any, const Tensor& top_any,
                const Tensor& log_sum_any, const std::optional<Tensor>& entropy_any, int64_t num_valid, double scale) {
  constexpr const char* op = "token_logprob_backward";
  check_inputs(op, logits, ids_any, num_valid, scale);
  const auto sizes = ids_any.sizes();
  if (grad_logprob_any) check_float(op, "grad_logprob", *grad_logprob_any, logits, sizes);
  if (grad_lse_any) check_float(op, "grad_lse", *grad_lse_any, logits, sizes);
  if (grad_entropy_any) check_float(op, "grad_entropy", *grad_entropy_any, logits, sizes);
  check_float(op, "top", top_any, logits, sizes);
  check_float(op, "log_sum", log_sum_any, logits, sizes);
  TORCH_CHECK(!grad_entropy_any || entropy_any, op, ": entropy is missing; grad_entropy needs it");
  if (entropy_any) check_float(op, "entropy", *entropy_any, logits, sizes);
  const auto ids = ids_any.contiguous(), top = top_any.contiguous(), log_sum = log_sum_any.contiguous();
  const auto grad_logprob = contiguous(grad_logprob_any), grad_lse = contiguous(grad_lse_any), grad_entropy = contiguous(grad_entropy_any);
  const auto entropy = contiguous(entropy_any);
  const auto grad = at::empty_like(logits);
  launch(TokenLogprobBackward{data<float>(grad_logprob), data<float>(grad_lse), data<float>(grad_entropy), data(logits),
                              rows_of(op, "logits", logits), data<int64_t>(ids), data<float>(top), data<float>(log_sum), data<float>(entropy),
                              out(grad), rows_of(op, "grad", grad), ids.numel(), logits.size(-1), num_valid, static_cast<float>(scale),
                              dtype_of(logits)},
         logits);
  return grad;
}

void implement(torch::Library& m) {
  m.impl("token_logprob_forward", forward);
  m.impl("token_logprob_backward", backward);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def(
      "token_logprob_forward(Tensor logits, Tensor ids, int num_valid, float scale, bool entropy) "
      "-> (Tensor top, Tensor sum_exp, Tensor target, Tensor weighted)");
  m.def(
      "token_logprob_backward(Tensor? grad_logprob, Tensor? grad_lse, Tensor? grad_entropy, Tensor logits, Tensor ids, Tensor top, Tensor log_sum, "
      "Tensor? entropy, int num_valid, float scale) -> Tensor");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
