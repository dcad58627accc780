#include "ops/ppo_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> policy_loss(const Tensor& logprobs_any, const Tensor& old_logprobs_any, const Tensor& advantages_any,
                                       const Tensor& mask_any, double clip_ratio) {
  constexpr const char* op = "ppo_policy_loss";
  check_dtype(op, "logprobs", logprobs_any, at::kFloat);
  check_like(op, "old_logprobs", old_logprobs_any, logprobs_any, logprobs_any.sizes());
  check_like(op, "advantages", advantages_any, logprobs_any, logprobs_any.sizes());
  check_like(op, "mask", mask_any, logprobs_any, logprobs_any.sizes());
  TORCH_CHECK(clip_ratio >= 0, op, ": clip_ratio is ", clip_ratio, "; it must not be negative");
  const auto logprobs = logprobs_any.contiguous(), old_logprobs = old_logprobs_any.contiguous();
  const auto advantages = advantages_any.contiguous(), mask = mask_any.contiguous();
  const auto sums = at::empty({4}, logprobs.options()), slope = at::empty_like(logprobs), partial = scratch({kPpoParts, 4}, logprobs);
  launch(PpoPolicyLoss{data<float>(logprobs), data<float>(old_logprobs), data<float>(advantages), data<float>(mask), out<float>(sums),
                       out<float>(slope), out<float>(partial), logprobs.numel(), static_cast<float>(1 - clip_ratio),
                       static_cast<float>(1 + clip_ratio)},
         logprobs);
  return {sums, slope};
}

std::tuple<Tensor, Tensor> value_loss(const Tensor& values_any, const Tensor& old_values_any, const Tensor& returns_any, const Tensor& mask_any,
                                      double clip_value) {
  constexpr const char* op = "ppo_value_loss";
  check_dtype(op, "values", values_any, at::kFloat);
  check_like(op, "old_values", old_values_any, values_any, values_any.sizes());
  check_like(op, "returns", returns_any, values_any, values_any.sizes());
  check_like(op, "mask", mask_any, values_any, values_any.sizes());
  TORCH_CHECK(clip_value >= 0, op, ": clip_value is ", clip_value, "; it must not be negative");
  const auto values = values_any.contiguous(), old_values = old_values_any.contiguous();
  const auto returns = returns_any.contiguous(), mask = mask_any.contiguous();
  const auto sums = at::empty({2}, values.options()), slope = at::empty_like(values), partial = scratch({kPpoParts, 2}, values);
  launch(PpoValueLoss{data<float>(values), data<float>(old_values), data<float>(returns), data<float>(mask), out<float>(sums), out<float>(slope),
                      out<float>(partial), values.numel(), static_cast<float>(clip_value)},
         values);
  return {sums, slope};
}

void implement(torch::Library& m) {
  m.impl("ppo_policy_loss", policy_loss);
  m.impl("ppo_value_loss", value_loss);
}

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("ppo_policy_loss(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor mask, float clip_ratio) -> (Tensor sums, Tensor slope)");
  m.def("ppo_value_loss(Tensor values, Tensor old_values, Tensor returns, Tensor mask, float clip_value) -> (Tensor sums, Tensor slope)");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
