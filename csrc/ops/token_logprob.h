// Log-probability of one token per row, log-sum-exp and entropy, from logits, without ever writing the softmax.
//
// With x one row of this shard's logits, y = scale * x over its first num_valid columns, and t its id:
//   forward    top = max(y)     sum_exp = sum(exp(y - top))     target = y[t], or 0 where t lies outside [0, num_valid)
//              weighted = sum(exp(y - top) * (y - top)), 0 * inf counting as 0
// Shards combine these (megagpt/kernels/token_logprob.py) into top and log_sum of the whole row: log-sum-exp lse = top + log_sum,
// log-probability y[t] - lse, entropy = log_sum - weighted / sum_exp.
//   backward   with z[j] = (y[j] - top) - log_sum, p[j] = exp(z[j]):
//              grad_x[j] = scale * (grad_logprob * [j == t] + p[j] * (grad_lse - grad_logprob - grad_entropy * (z[j] + entropy)))
//              0 for columns from num_valid on
//
// logits, grad_x                        [..., width]  one of the storage types; any strides but a dense last dimension
// ids                                   [...]         int64; one outside [0, num_valid) belongs to another shard and is no error
// top, sum_exp, target, weighted, log_sum, entropy, grad_logprob, grad_lse, grad_entropy      [...]  float32
//
// All outputs are overwritten. Logits from column num_valid on are never read.
// A row of -inf alone gives top -inf and sum_exp 0. One with NaN or +inf gives sum_exp NaN (top may have lost the NaN), and so does its gradient.
#pragma once

#include "common/kernel.h"
#include "common/rows.h"

namespace megagpt {

struct TokenLogprobForward {
  const void* logits;
  Rows at;  // where its rows lie
  const int64_t* ids;
  float *top, *sum_exp, *target, *weighted;  // weighted may be null
  int64_t rows, num_valid;
  float scale;
  Dtype dtype;
};

struct TokenLogprobBackward {
  const float *grad_logprob, *grad_lse, *grad_entropy;  // each may be null
  const void* logits;
  Rows at;
  const int64_t* ids;
  const float *top, *log_sum, *entropy;  // entropy is not read without grad_entropy
  void* grad;
  Rows grad_at;
  int64_t rows, width, num_valid;
  float scale;
  Dtype dtype;
};

}  // namespace megagpt

MEGAGPT_KERNEL(TokenLogprobForward)
MEGAGPT_KERNEL(TokenLogprobBackward)
