// The elements are cut into parts of kPart, whatever the number of threads; the sums of the parts are added in their order, in double.
#include "ops/ppo_loss.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

constexpr int64_t kPart = 8192;

Vec where(const Vec& condition, const Vec& yes, const Vec& no) { return Vec::blendv(no, yes, condition); }

// What torch.minimum passes on to its first argument a of the gradient, and torch.maximum to its second: all, half where they are equal, or
// nothing; with NaN all.
Vec passed(const Vec& gradient, const Vec& a, const Vec& b) { return where(a > b, Vec(0.f), where(a == b, Vec(0.5f) * gradient, gradient)); }

// element(sums, x...) adds to sums[kSums] and returns the slope; y[i] = element(sums, x[i]...).
template <int kSums, class F, class... X>
void sum_and_transform(int64_t count, float* total, float* y, const F& element, const X*... x) {
  const int64_t parts = (count + kPart - 1) / kPart;
  std::vector<float> partial(parts * kSums);
  at::parallel_for(0, parts, kGrain / kPart, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPart;
      RowSum sums[kSums];
      transform(std::min(kPart, count - first), y + first, [&](const auto&... v) { return element(sums, v...); }, x + first...);
      for (int s = 0; s < kSums; ++s) partial[p * kSums + s] = sums[s].value();
    }
  });
  for (int s = 0; s < kSums; ++s) {
    double sum = 0.;
    for (int64_t p = 0; p < parts; ++p) sum += partial[p * kSums + s];
    total[s] = static_cast<float>(sum);
  }
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const PpoPolicyLoss& a) {
  const Vec zero(0.f), one(1.f), least(a.least), most(a.most);
  // What fills up the last vectors is 0: the mask hides it.
  const auto element = [&](RowSum* sums, const Vec& logprob, const Vec& old_logprob, const Vec& advantage, const Vec& mask) {
    const Vec log_ratio = (logprob - old_logprob) * mask, ratio = log_ratio.exp(), clipped = at::vec::clamp(ratio, least, most);
    const Vec free = ratio * advantage, bound = clipped * advantage;
    sums[0].add(zero - at::vec::minimum(free, bound) * mask);
    sums[1].add(where(ratio != clipped, one, zero) * mask);
    sums[2].add((ratio - one).abs() * mask);
    sums[3].add((ratio - one - log_ratio) * mask);
    const Vec by_bound = where((ratio >= least) & (ratio <= most), passed(mask, bound, free) * advantage, zero);
    return zero - (passed(mask, free, bound) * advantage + by_bound) * ratio * mask;
  };
  sum_and_transform<4>(a.count, a.sums, a.slope, element, a.logprobs, a.old_logprobs, a.advantages, a.mask);
}

void run(MEGAGPT_CAPABILITY, const PpoValueLoss& a) {
  const Vec zero(0.f), half(0.5f), most(a.clip), least(-a.clip);
  const auto element = [&](RowSum* sums, const Vec& value, const Vec& old_value, const Vec& target, const Vec& mask) {
    const Vec step = value - old_value, error = value - target, clipped_error = old_value + at::vec::clamp(step, least, most) - target;
    const Vec free = error * error, bound = clipped_error * clipped_error;
    sums[0].add(half * at::vec::maximum(free, bound) * mask);
    sums[1].add(free * mask);
    const Vec by_bound = where((step >= least) & (step <= most), passed(mask, free, bound) * clipped_error, zero);
    return passed(mask, bound, free) * error + by_bound;
  };
  sum_and_transform<2>(a.count, a.sums, a.slope, element, a.values, a.old_values, a.returns, a.mask);
}

}  // namespace megagpt
