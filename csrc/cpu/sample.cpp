// One thread for each row, with 12 bytes of memory for each of its tokens.
#include "ops/sample.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

using namespace sampling;

// The tokens of one row; the memory is used again for the next.
class Tokens {
 public:
  explicit Tokens(int64_t n) : n_(n), floats_(n), keys_(n), weights_(n), bins_(kBins) {}

  template <class T>
  void set(const T* x, float top, float scale) {
    transform(n_, floats_.data(), [](const Vec& v) { return v; }, x);
    for (int64_t k = 0; k < n_; ++k) keys_[k] = key_of(floats_[k]);
    const Vec top_v(top), scale_v(scale);
    transform(n_, floats_.data(), [&](const Vec& v) { return ((v - top_v) * scale_v).exp_u20(); }, floats_.data());
    for (int64_t k = 0; k < n_; ++k) weights_[k] = weight_of(floats_[k]);
  }

  // Of the tokens whose key is larger.
  uint64_t weight_beyond(uint32_t key) const {
    uint64_t sum = 0;
    for (int64_t k = 0; k < n_; ++k) sum += keys_[k] > key ? weights_[k] : 0;
    return sum;
  }

  // Where the sum of count(k) over falling keys reaches `need`.
  template <class F>
  Reached reach(uint64_t need, const F& count) {
    Reached r;
    uint32_t known = 0;  // bits
    for (int shift = kFirstShift; shift >= 0; shift -= kDigitBits) {
      std::fill(bins_.begin(), bins_.end(), uint64_t{0});
      for (int64_t k = 0; k < n_; ++k) {
        if ((keys_[k] & known) == r.key) bins_[keys_[k] >> shift & (kBins - 1)] += count(k);
      }
      uint32_t bin = kBins - 1;
      while (bin > 0 && r.before + bins_[bin] < need) r.before += bins_[bin--];
      r.key |= bin << shift;
      known = ~0u << shift;
    }
    return r;
  }

  Cut cut_to(int64_t top_k, double top_p) {
    Cut cut;
    if (top_k < n_) cut.key = reach(top_k, [](int64_t) { return 1; }).key - 1;
    if (top_p < 1.) {
      const auto need = needed(top_p, weight_beyond(cut.key));
      const auto r = reach(need, [&](int64_t k) { return weights_[k]; });
      const auto each = weights_[std::find(keys_.begin(), keys_.end(), r.key) - keys_.begin()];
      cut = {r.key, (need - r.before + each - 1) / each};
    }
    return cut;
  }

  int64_t draw(const Cut& cut, double draw) const {
    if (cut.key == 0) return draw_of_all(draw);
    uint64_t kept = 0, ties = 0;
    for (int64_t k = 0; k < n_; ++k) kept += keeps(cut, k, ties) ? weights_[k] : 0;
    const auto passed = drawn(draw, kept);
    uint64_t sum = ties = 0;
    int64_t k = 0;
    while ((sum += keeps(cut, k, ties) ? weights_[k] : 0) <= passed) ++k;
    return k;
  }

 private:
  // To be asked of all tokens in turn.
  bool keeps(const Cut& cut, int64_t k, uint64_t& ties) const { return keys_[k] > cut.key || (keys_[k] == cut.key && ties++ < cut.ties); }

  // Nothing is cut off: sums of many tokens at a time first.
  int64_t draw_of_all(double draw) const {
    constexpr int64_t kBlock = 256;
    const auto passed = drawn(draw, weight_beyond(0));
    uint64_t sum = 0, block = 0;
    int64_t k = 0;
    const auto next = [&] {
      block = 0;
      for (int64_t i = k; i < std::min(k + kBlock, n_); ++i) block += weights_[i];
      return sum + block <= passed;
    };
    for (; next(); k += kBlock) sum += block;
    while ((sum += weights_[k]) <= passed) ++k;
    return k;
  }

  int64_t n_;
  std::vector<float> floats_;
  std::vector<uint32_t> keys_;
  std::vector<uint64_t> weights_, bins_;
};

template <class T>
void sample(const Sample& a) {
  at::parallel_for(0, a.rows, std::max<int64_t>(1, kGrain / a.width), [&](int64_t begin, int64_t end) {
    Tokens tokens(a.width);
    for (int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.logits) + a.at.offset(r);
      const float top = max_of(x, a.width);
      if (!std::isfinite(top)) {
        a.tokens[r] = -1;
        a.logprobs[r] = std::numeric_limits<float>::quiet_NaN();
        continue;
      }
      tokens.set(x, top, a.scale);
      const auto total = std::ldexp(static_cast<double>(tokens.weight_beyond(0)), -kFraction);
      const auto token = a.tokens[r] = tokens.draw(a.greedy ? Cut{key_of(top), 1} : tokens.cut_to(a.top_k, a.top_p), a.draws[r]);
      a.logprobs[r] = a.scale * (static_cast<float>(x[token]) - top) - static_cast<float>(std::log(total));
    }
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const Sample& a) {
  dispatch(a.dtype, [&]<class T>(T*) { sample<T>(a); });
}

}  // namespace megagpt
