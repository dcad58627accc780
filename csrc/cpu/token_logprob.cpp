// One thread for each row, which it reads once, forward and backward.
#include "ops/token_logprob.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// exp of this is 0. What is smaller, down to -inf, is taken for it where 0 * -inf would be NaN.
constexpr float kVanished = -200.f;

// Elements that are summed before they join the sums of the row: a float that counts to 50,000 by ones and less loses digits. They stay in the
// nearest cache between the search for the largest and the sums.
constexpr int64_t kBlock = 2048;
// Elements that the backward pass asks for before it needs them.
constexpr int64_t kAhead = 512;

// Asks for the memory of a row some time before it is read. The processor does so by itself, but stops at every page of 4 KiB, and the exponentials
// leave room for it: without this the two add up instead of overlapping.
template <class T>
class Ahead {
 public:
  explicit Ahead(const T* x) : next_(x) {}
  // once for each vector
  void step() {
    __builtin_prefetch(next_);
    next_ += Vec::size();
  }

 private:
  const T* next_;
};

// Sums over some y, relative to the largest of them.
struct Sums {
  float top = -kInf, sum_exp = 0.f, weighted = 0.f;
};

// of one row of n columns
template <bool kEntropy, class T>
Sums sums_of(const T* x, int64_t n, float scale) {
  Sums s;
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t count = std::min(kBlock, n - k);
    const float top = scale * max_of(x + k, count);
    if (top == -kInf) continue;
    if (!std::isfinite(top)) return {top, kNan, kNan};  // exp_u20 would turn the NaN of inf - inf into a number
    if (top > s.top) {
      const float d = s.top - top, factor = std::exp(d);
      s.weighted = factor * (s.weighted + std::max(d, kVanished) * s.sum_exp);
      s.sum_exp *= factor;
      s.top = top;
    }
    const Vec scale_v(scale), top_v(s.top), vanished(kVanished);
    Vec sum(0.f), weighted(0.f);
    Ahead ahead(x + k + kBlock);
    for_each(count, T(-kInf), [&](const Vec& v) {
      ahead.step();
      const Vec y = v * scale_v - top_v, e = y.exp_u20();
      sum += e;
      if constexpr (kEntropy) weighted += e * at::vec::maximum(y, vanished);
    }, x + k);
    s.sum_exp += reduce_sum(sum);
    s.weighted += reduce_sum(weighted);
  }
  return s;
}

template <class T>
void forward(const TokenLogprobForward& a) {
  parallel_rows(a.rows, a.num_valid, [&](int64_t r) {
    const T* x = static_cast<const T*>(a.logits) + a.at.offset(r);
    const auto sums = a.weighted ? sums_of<true>(x, a.num_valid, a.scale) : sums_of<false>(x, a.num_valid, a.scale);
    a.top[r] = sums.top;
    a.sum_exp[r] = sums.sum_exp;
    if (a.weighted) a.weighted[r] = sums.weighted;
    a.target[r] = a.ids[r] >= 0 && a.ids[r] < a.num_valid ? a.scale * static_cast<float>(x[a.ids[r]]) : 0.f;
  });
}

template <class T>
void backward(const TokenLogprobBackward& a) {
  parallel_rows(a.rows, a.width, [&](int64_t r) {
    const T* x = static_cast<const T*>(a.logits) + a.at.offset(r);
    T* grad = static_cast<T*>(a.grad) + a.grad_at.offset(r);
    std::fill(grad + a.num_valid, grad + a.width, T(0.f));
    const float top = a.top[r], log_sum = a.log_sum[r];
    if (!std::isfinite(top) || !std::isfinite(log_sum)) {
      std::fill(grad, grad + a.num_valid, T(kNan));
      return;
    }
    const float of_logprob = a.grad_logprob ? a.scale * a.grad_logprob[r] : 0.f, of_lse = a.grad_lse ? a.scale * a.grad_lse[r] : 0.f;
    const Vec scale_v(a.scale), top_v(top), log_sum_v(log_sum), factor(of_lse - of_logprob);
    Ahead ahead(x + kAhead);
    const auto z_of = [&](const Vec& v) {
      ahead.step();
      return v * scale_v - top_v - log_sum_v;
    };
    float of_entropy = 0.f, entropy = 0.f;
    if (a.grad_entropy) {
      of_entropy = a.scale * a.grad_entropy[r];
      entropy = a.entropy[r];
      const Vec of_entropy_v(of_entropy), entropy_v(entropy), vanished(kVanished);
      transform(a.num_valid, grad, [&](const Vec& v) {
        const Vec z = z_of(v);
        return z.exp_u20() * (factor - of_entropy_v * (at::vec::maximum(z, vanished) + entropy_v));
      }, x);
    } else {
      transform(a.num_valid, grad, [&](const Vec& v) { return z_of(v).exp_u20() * factor; }, x);
    }
    if (a.ids[r] >= 0 && a.ids[r] < a.num_valid) {
      // 1 - p by expm1: where p is close to 1 it adds no error to that of z
      const float z = a.scale * static_cast<float>(x[a.ids[r]]) - top - log_sum;
      grad[a.ids[r]] = T(std::exp(z) * (of_lse - of_entropy * (std::max(z, kVanished) + entropy)) - of_logprob * std::expm1(z));
    }
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const TokenLogprobForward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { forward<T>(a); });
}

void run(MEGAGPT_CAPABILITY, const TokenLogprobBackward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { backward<T>(a); });
}

}  // namespace megagpt
