// One token for each row of logits, by inverting the cumulative distribution of softmax(logits / temperature), truncated to the top_k largest and
// then to the smallest set whose probability reaches top_p; and the logarithm of its untruncated probability.
//
// With x one row, top = max(x) and scale = 1 / temperature, token j weighs exp(scale * (x[j] - top)) in units of 2^-kFraction, rounded down. Weights
// are integers, so sums of them are exact, and the same in any order.
//   top_k   keeps the tokens whose logit is at least the k-th largest: more than k where several are equal to it
//   top_p   then takes tokens by falling logit, the first of equal ones first, until their weight reaches top_p times the weight of what top_k kept
//   draw    token = the first one, in the order of the vocabulary, up to which the kept tokens weigh more than draw * all kept
//   greedy  token = the first of the largest logits, whatever the rest
// logprob = scale * (x[token] - top) - log(sum of all weights)
//
// logits             [..., width]  one of the storage types; any strides but a dense last dimension; width at most kMaxWidth
// draws              [...]         float64 in [0, 1); what is not counts as the nearest that is, NaN as 0
// tokens, logprobs   [...]         int64, float32; overwritten
//
// The largest logit of a row must be finite: where a row holds NaN or +inf, or nothing but -inf, token is -1 and logprob NaN.
// A token whose weight is 0, being 2^kFraction times less likely than the likeliest, is never drawn.
#pragma once

#include <bit>

#include "common/kernel.h"
#include "common/rows.h"

namespace megagpt {

struct Sample {
  const void* logits;
  Rows at;  // where its rows lie
  const double* draws;
  int64_t* tokens;
  float* logprobs;
  int64_t rows, width;
  float scale;
  int64_t top_k;  // at most width, which keeps all
  double top_p;
  bool greedy;
  Dtype dtype;
};

namespace sampling {

constexpr int kFraction = 40;
constexpr int64_t kMaxWidth = int64_t{1} << 23;  // so that the sum of all weights stays below 2^63

// exp(...) as an integer
MEGAGPT_BOTH inline uint64_t weight_of(float exp) { return static_cast<uint64_t>(exp * static_cast<float>(uint64_t{1} << kFraction)); }

// Integers in the order of the logits, from which a histogram of some of their bits can be made; never 0.
MEGAGPT_BOTH inline uint32_t key_of(float logit) {
  const auto bits = std::bit_cast<uint32_t>(logit + 0.f);  // -0 becomes 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
MEGAGPT_BOTH inline float logit_of(uint32_t key) { return std::bit_cast<float>(key >> 31 ? key & 0x7fffffffu : ~key); }

// Keys are looked through in three steps of so many bits.
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits, kFirstShift = 2 * kDigitBits;

// What is kept: tokens whose key is larger, and the first so many of those with just this key.
struct Cut {
  uint32_t key = 0;
  uint64_t ties = 0;
};

// The key at which a sum over falling keys reaches what is needed, and that sum before it.
struct Reached {
  uint32_t key = 0;
  uint64_t before = 0;
};

// The least weight that is top_p of `all`.
MEGAGPT_BOTH inline uint64_t needed(double top_p, uint64_t all) {
  const double share = top_p * static_cast<double>(all);
  uint64_t need = static_cast<uint64_t>(share);
  if (static_cast<double>(need) < share) ++need;
  return need < 1 ? 1 : need > all ? all : need;
}

// The weight that the token sought must exceed.
MEGAGPT_BOTH inline uint64_t drawn(double draw, uint64_t kept) {
  if (!(draw > 0.)) return 0;
  const auto weight = draw < 1. ? static_cast<uint64_t>(draw * static_cast<double>(kept)) : kept;
  return weight < kept ? weight : kept - 1;
}

}  // namespace sampling
}  // namespace megagpt

MEGAGPT_KERNEL(Sample)
