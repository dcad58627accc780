// One thread for each row. Forward: the scores that the row sees go into a buffer of float32, which stays in the cache, and become the
// probabilities there; memory is read once and written once. Backward: a row is read from memory once and from the cache afterwards.
#include "ops/masked_softmax.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the rows see.
template <class Args>
class Sight {
 public:
  explicit Sight(const Args& a) : a_(a) {
    if (!a.mask) return;
    seen_.assign(a.mask, a.mask + a.batch * a.keys);
    first_.resize(a.batch);
    for (int64_t b = 0; b < a.batch; ++b) first_[b] = std::find(a.mask + b * a.keys, a.mask + (b + 1) * a.keys, 1) - (a.mask + b * a.keys);
  }

  // No column from here on.
  int64_t end(int64_t row) const {
    const int64_t end = a_.causal ? std::clamp<int64_t>(row % a_.queries + a_.keys - a_.queries + 1, 0, a_.keys) : a_.keys;
    return a_.mask && first_[batch(row)] >= end ? 0 : end;
  }

  // 1 for each column that the mask lets through, 0 for the others; null without a mask.
  const float* seen(int64_t row) const { return a_.mask ? seen_.data() + batch(row) * a_.keys : nullptr; }

 private:
  int64_t batch(int64_t row) const { return row / (a_.heads * a_.queries); }

  const Args& a_;
  std::vector<float> seen_;
  std::vector<int64_t> first_;  // column that the mask lets through, of each batch
};

Vec where_seen(const Vec& seen, const Vec& v, float otherwise) { return Vec::blendv(v, Vec(otherwise), seen == Vec(0.f)); }

template <class T>
void forward(const MaskedSoftmaxForward& a) {
  const int64_t n = a.keys;
  const Sight sight(a);
  const Vec scale(a.scale);
  at::parallel_for(0, a.batch * a.heads * a.queries, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, n)), [&](int64_t begin, int64_t stop) {
    std::vector<float> buffer(n + kStep);
    float* const p = buffer.data();
    for (int64_t r = begin; r < stop; ++r) {
      const T* x = static_cast<const T*>(a.x) + r * n;
      T* y = static_cast<T*>(a.y) + r * n;
      const float* seen = sight.seen(r);
      const int64_t end = sight.end(r);

      Vec top_v(-kInfinity);
      for (int64_t k = 0; k < end; k += kStep) {
        const bool whole = k + kStep <= end;
        auto [low, high] = whole ? load_pair(x + k) : load_rest(x + k, end - k, T(-kInfinity));
        if (seen) {
          const auto [seen_low, seen_high] = whole ? load_pair(seen + k) : load_rest(seen + k, end - k);
          low = where_seen(seen_low, low, -kInfinity);
          high = where_seen(seen_high, high, -kInfinity);
        }
        store_pair(p + k, low, high);
        top_v = at::vec::maximum(top_v, at::vec::maximum(low, high));
      }
      // The scale is positive, so that it may be left for later. The fast exponential makes numbers of NaN.
      const float top = reduce_max(top_v) * a.scale;
      if (std::isfinite(top)) {
        RowSum total;
        for (int64_t k = 0; k < end; k += kStep) {
          const auto [low, high] = load_pair(p + k);
          const Vec e = at::vec::fmsub(low, scale, Vec(top)).exp_u20(), f = at::vec::fmsub(high, scale, Vec(top)).exp_u20();
          store_pair(p + k, e, f);
          total.add(e + f);
        }
        const Vec share(1.f / total.value());
        transform(end, y, [&](const Vec& e) { return e * share; }, p);
      } else {
        for (int64_t k = 0; k < end; ++k) y[k] = T(!seen || seen[k] > 0.f ? std::numeric_limits<float>::quiet_NaN() : 0.f);
      }
      std::fill(y + end, y + n, T(0.f));
    }
  });
}

template <class T>
void backward(const MaskedSoftmaxBackward& a) {
  const int64_t n = a.keys;
  const Sight sight(a);
  const Vec scale(a.scale);
  parallel_rows(a.batch * a.heads * a.queries, n, [&](int64_t r) {
    const auto *g = static_cast<const T*>(a.grad_y) + r * n, *y = static_cast<const T*>(a.y) + r * n;
    T* grad_x = static_cast<T*>(a.grad_x) + r * n;
    const float* seen = sight.seen(r);
    const int64_t end = sight.end(r);
    RowSum total;
    if (seen) {
      for_each(end, T(0.f), [&](const Vec& d, const Vec& p, const Vec& s) { total.add(where_seen(s, d * p, 0.f)); }, g, y, seen);
    } else {
      for_each(end, T(0.f), [&](const Vec& d, const Vec& p) { total.add(d * p); }, g, y);
    }
    const Vec dot(total.value());
    const auto slope = [&](const Vec& d, const Vec& p) { return scale * p * (d - dot); };
    if (seen) {
      transform(end, grad_x, [&](const Vec& d, const Vec& p, const Vec& s) { return where_seen(s, slope(d, p), 0.f); }, g, y, seen);
    } else {
      transform(end, grad_x, slope, g, y);
    }
    std::fill(grad_x + end, grad_x + n, T(0.f));
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const MaskedSoftmaxForward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { forward<T>(a); });
}

void run(MEGAGPT_CAPABILITY, const MaskedSoftmaxBackward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { backward<T>(a); });
}

}  // namespace megagpt
