// Log-probability of one token per row, from logits, without ever writing the softmax.
//
// With x one row of this shard's logits, y = scale * x over its first num_valid columns, and t its id:
//   forward    max = max(y)      sum_exp = sum(exp(y - max))      target = y[t], or 0 where t lies outside [0, num_valid)
//   backward   grad_x[j] = grad_out * scale * ([j == t] - exp(y[j] - lse)); 0 for columns from num_valid on
// Shards combine their forward results into lse = log(sum over all shards of exp(y)) and target - lse (megagpt/kernels/token_logprob.py).
//
// logits     [..., V]  float32, float16 or bfloat16; any strides but a dense last dimension
// ids        [...]     int64; an id outside [0, num_valid) belongs to another shard and is no error
// max, sum_exp, target, lse, grad_out  [...]  float32
//
// Arithmetic is float32. Outputs are new tensors, nothing is accumulated into. Columns from num_valid on are never read.
// One thread per row; a row is read twice (the second time from cache) forward and once backward.
// lse comes rounded to float32, which makes every probability of a row wrong by up to half its spacing: 4e-6 relative at lse 64.
// A row of -inf alone gives max -inf and sum_exp 0; one with NaN or +inf gives sum_exp NaN.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/rows.h"
#include "common/vec.h"

namespace megagpt {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// Elements that make a second thread worth waking.
constexpr int64_t kGrain = 32768;
// Elements that are summed before they join the sum of the row: a float that counts to 50,000 by ones and less loses digits.
constexpr int64_t kBlock = 1024;

void check_inputs(const char* op, const at::Tensor& logits, const at::Tensor& ids, int64_t num_valid, double scale) {
  check_storage_dtype(op, "logits", logits);
  check_dense_rows(op, "logits", logits);
  check_dtype(op, "ids", ids, at::kLong);
  check_shape(op, "ids", ids, logits.sizes().slice(0, logits.dim() - 1));
  TORCH_CHECK(num_valid >= 0 && num_valid <= logits.size(-1), op, ": num_valid is ", num_valid, "; it must be in [0, ", logits.size(-1), "]");
  TORCH_CHECK(std::isfinite(scale) && scale > 0, op, ": scale is ", scale, "; it must be positive and finite");
}

template <class F>
void parallel_rows(int64_t num_rows, int64_t width, const F& row) {
  at::parallel_for(0, num_rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) row(r);
  });
}

// max and sum_exp of one row of n columns
template <class T>
std::pair<float, float> max_and_sum(const T* x, int64_t n, float scale) {
  const T fill(-kInf);
  Vec top(-kInf);
  for_each(x, n, fill, [&](const Vec& v) { top = at::vec::maximum(top, v); });
  const float max = scale * reduce_max(top);
  if (!std::isfinite(max)) return {max, max == -kInf ? 0.f : kNan};  // exp_u20 would turn the NaN of inf - inf into a number

  const Vec scale_v(scale), max_v(max);
  Vec sum(0.f);
  for (int64_t k = 0; k < n; k += kBlock) {
    Vec block(0.f);
    for_each(x + k, std::min(kBlock, n - k), fill, [&](const Vec& v) { block += (v * scale_v - max_v).exp_u20(); });
    sum += block;
  }
  return {max, reduce_sum(sum)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& logits, const at::Tensor& ids_any, int64_t num_valid, double scale_d) {
  check_inputs("token_logprob_forward", logits, ids_any, num_valid, scale_d);
  const auto ids = ids_any.contiguous();
  const auto scale = static_cast<float>(scale_d);
  const auto max = at::empty(ids.sizes(), logits.options().dtype(at::kFloat));
  const auto sum_exp = at::empty_like(max), target = at::empty_like(max);
  const RowOffsets rows(logits);

  MEGAGPT_DISPATCH(logits.scalar_type(), "token_logprob_forward", [&] {
    const auto* x = logits.const_data_ptr<scalar_t>();
    const auto* id = ids.const_data_ptr<int64_t>();
    auto *max_out = max.mutable_data_ptr<float>(), *sum_out = sum_exp.mutable_data_ptr<float>(), *target_out = target.mutable_data_ptr<float>();
    parallel_rows(ids.numel(), num_valid, [&](int64_t r) {
      const scalar_t* row = x + rows[r];
      std::tie(max_out[r], sum_out[r]) = max_and_sum(row, num_valid, scale);
      target_out[r] = id[r] >= 0 && id[r] < num_valid ? scale * static_cast<float>(row[id[r]]) : 0.f;
    });
  });
  return {max, sum_exp, target};
}

at::Tensor backward(const at::Tensor& grad_out_any, const at::Tensor& logits, const at::Tensor& ids_any, const at::Tensor& lse_any,
                    int64_t num_valid, double scale_d) {
  constexpr const char* op = "token_logprob_backward";
  check_inputs(op, logits, ids_any, num_valid, scale_d);
  check_dtype(op, "grad_out", grad_out_any, at::kFloat);
  check_shape(op, "grad_out", grad_out_any, ids_any.sizes());
  check_dtype(op, "lse", lse_any, at::kFloat);
  check_shape(op, "lse", lse_any, ids_any.sizes());
  const auto grad_out = grad_out_any.contiguous(), ids = ids_any.contiguous(), lse = lse_any.contiguous();
  const auto scale = static_cast<float>(scale_d);
  const auto width = logits.size(-1);
  const auto grad = at::empty_like(logits);
  const RowOffsets rows(logits), grad_rows(grad);

  MEGAGPT_DISPATCH(logits.scalar_type(), op, [&] {
    const auto* x = logits.const_data_ptr<scalar_t>();
    const auto* id = ids.const_data_ptr<int64_t>();
    const auto *g = grad_out.const_data_ptr<float>(), *l = lse.const_data_ptr<float>();
    auto* out = grad.mutable_data_ptr<scalar_t>();
    parallel_rows(ids.numel(), width, [&](int64_t r) {
      const scalar_t* row = x + rows[r];
      scalar_t* grad_row = out + grad_rows[r];
      std::fill(grad_row + num_valid, grad_row + width, scalar_t(0.f));
      if (!std::isfinite(l[r])) {
        std::fill(grad_row, grad_row + num_valid, scalar_t(kNan));
        return;
      }
      const float weight = g[r] * scale;
      const Vec scale_v(scale), lse_v(l[r]), weight_v(-weight);
      transform(row, grad_row, num_valid, [&](const Vec& v) { return (v * scale_v - lse_v).exp_u20() * weight_v; });
      // 1 - p by expm1, which keeps its digits where p is close to 1
      if (id[r] >= 0 && id[r] < num_valid) grad_row[id[r]] = scalar_t(-weight * std::expm1(scale * static_cast<float>(row[id[r]]) - l[r]));
    });
  });
  return grad;
}

}  // namespace

TORCH_LIBRARY_IMPL(megagpt, CPU, m) {
  m.impl("token_logprob_forward", forward);
  m.impl("token_logprob_backward", backward);
}

}  // namespace megagpt
