// All tensors lie one behind the other in thought, and each thread takes an equal part of that: many small tensors cost no more than one large.
#include "ops/adamw.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

struct Moved {
  Vec param, exp_avg, exp_avg_sq;
};

// The elements [begin, end) of one tensor. C float: there are no copies.
template <class G, class C>
void update(const AdamW& a, const AdamWTensor& t, float scale, int64_t begin, int64_t end) {
  const auto* grad = static_cast<const G*>(t.grad);
  [[maybe_unused]] auto* copy = static_cast<C*>(t.copy);
  const bool near_grad = a.one_minus_beta1 >= 0.5f;  // exp_avg is then counted from the gradient, as in torch.lerp
  const Vec share(near_grad ? a.one_minus_beta1 - 1.f : a.one_minus_beta1), scale_v(scale), beta2(a.beta2), one_minus_beta2(a.one_minus_beta2);
  const Vec decay(a.decay), correction(a.correction), eps(a.eps), step_size(-a.step_size);
  const auto element = [&](const Vec& p, const Vec& unscaled, const Vec& m, const Vec& v) {
    const Vec g = unscaled * scale_v;
    const Vec exp_avg = at::vec::fmadd(share, g - m, near_grad ? g : m);
    const Vec exp_avg_sq = at::vec::fmadd(one_minus_beta2 * g, g, v * beta2);
    return Moved{p * decay + step_size * exp_avg / (exp_avg_sq.sqrt() / correction + eps), exp_avg, exp_avg_sq};
  };
  const auto pair = [&](const auto& load, const auto& store, int64_t k) {
    const auto [p0, p1] = load(t.param + k);
    const auto [g0, g1] = load(grad + k);
    const auto [m0, m1] = load(t.exp_avg + k);
    const auto [v0, v1] = load(t.exp_avg_sq + k);
    const Moved low = element(p0, g0, m0, v0), high = element(p1, g1, m1, v1);
    store(t.param + k, low.param, high.param);
    store(t.exp_avg + k, low.exp_avg, high.exp_avg);
    store(t.exp_avg_sq + k, low.exp_avg_sq, high.exp_avg_sq);
    if constexpr (!std::is_same_v<C, float>) store(copy + k, low.param, high.param);
  };
  int64_t k = begin;
  for (; k + kStep <= end; k += kStep) {
    pair([](const auto* x) { return load_pair(x); }, [](auto* y, const Vec& low, const Vec& high) { store_pair(y, low, high); }, k);
  }
  if (k < end) {
    const int64_t n = end - k;
    pair([&](const auto* x) { return load_rest(x, n); }, [&](auto* y, const Vec& low, const Vec& high) { store_rest(y, n, low, high); }, k);
  }
}

template <class G, class C>
void update(const AdamW& a) {
  const float scale = a.grad_scale ? *a.grad_scale : 1.f;
  int64_t total = 0;
  for (int64_t i = 0; i < a.num_tensors; ++i) total += a.tensors[i].size;
  at::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (int64_t i = 0; i < a.num_tensors && first < end; first += a.tensors[i++].size) {
      update<G, C>(a, a.tensors[i], scale, std::max<int64_t>(begin - first, 0), std::min(end - first, a.tensors[i].size));
    }
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const AdamW& a) {
  if (a.overflow && *a.overflow != 0.f) return;
  dispatch(a.grad_dtype, [&]<class G>(G*) { dispatch(a.copy_dtype, [&]<class C>(C*) { update<G, C>(a); }); });
}

}  // namespace megagpt
