#include "ops/gae.h"

#include <ATen/ops/empty_like.h>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> gae(const Tensor& rewards_any, const Tensor& values_any, const Tensor& mask_any, double gamma, double gae_lambda) {
  constexpr const char* op = "gae";
  TORCH_CHECK(rewards_any.dim() == 2, op, ": rewards has shape ", rewards_any.sizes(), "; it must be [rows, width]");
  check_dtype(op, "rewards", rewards_any, at::kFloat);
  check_like(op, "values", values_any, rewards_any, rewards_any.sizes());
  check_like(op, "mask", mask_any, rewards_any, rewards_any.sizes());
  TORCH_CHECK(gamma >= 0 && gamma <= 1, op, ": gamma is ", gamma, "; it must be in [0, 1]");
  TORCH_CHECK(gae_lambda >= 0 && gae_lambda <= 1, op, ": gae_lambda is ", gae_lambda, "; it must be in [0, 1]");
  const auto rewards = rewards_any.contiguous(), values = values_any.contiguous(), mask = mask_any.contiguous();
  const auto advantages = at::empty_like(rewards), returns = at::empty_like(rewards);
  launch(Gae{data<float>(rewards), data<float>(values), data<float>(mask), out<float>(advantages), out<float>(returns), rewards.size(0),
             rewards.size(1), static_cast<float>(gamma), static_cast<float>(gamma * gae_lambda)},
         rewards);
  return {advantages, returns};
}

void implement(torch::Library& m) { m.impl("gae", gae); }

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def("gae(Tensor rewards, Tensor values, Tensor mask, float gamma, float gae_lambda) -> (Tensor advantages, Tensor returns)");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
