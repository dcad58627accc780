// For ops that treat every element by itself, and sum some of their results over rows.
#pragma once

#include "cpu/kernel.h"

namespace megagpt {
namespace {

// y[j][i] = f(x[i]...)[j] for i in [0, n) and every j; sums[j][i] grows by the same, unrounded, where there is a sums[j].
template <size_t N, class T, class F, class... X>
void transform_and_sum(int64_t n, const std::array<T*, N>& y, const std::array<float*, N>& sums, const F& f, const X*... x) {
  const auto step = [&](const auto& load, const auto& store) {
    const auto both = [&](const auto&... v) { return std::pair(f(std::get<0>(v)...), f(std::get<1>(v)...)); };
    const auto [low, high] = both(load(x)...);
    for (size_t j = 0; j < N; ++j) {
      store(y[j], low[j], high[j]);
      if (!sums[j]) continue;
      const auto [sum_low, sum_high] = load(sums[j]);
      store(sums[j], sum_low + low[j], sum_high + high[j]);
    }
  };
  int64_t k = 0;
  const auto load = [&](const auto* p) { return load_pair(p + k); };
  const auto store = [&](auto* p, const Vec& low, const Vec& high) { store_pair(p + k, low, high); };
  for (; k + kStep <= n; k += kStep) step(load, store);
  const auto load_end = [&](const auto* p) { return load_rest(p + k, n - k); };
  const auto store_end = [&](auto* p, const Vec& low, const Vec& high) { store_rest(p + k, n - k, low, high); };
  if (k < n) step(load_end, store_end);
}

// out = the sum over rows of what row(r, sums) adds to sums[width]. A float that counts thousands of rows loses digits, so they are first added up
// in blocks.
template <class T, class F>
void sum_rows(int64_t num_rows, int64_t width, T* out, const F& row) {
  constexpr int64_t kBlock = 32;
  const auto rows = [&](int64_t begin, int64_t end, float* sums) {
    std::vector<float> block(width);
    for (int64_t first = begin; first < end; first += kBlock) {
      std::fill(block.begin(), block.end(), 0.f);
      for (int64_t r = first; r < std::min(end, first + kBlock); ++r) row(r, block.data());
      transform(width, sums, [](const Vec& a, const Vec& b) { return a + b; }, sums, block.data());
    }
  };
  column_sums(num_rows, width, 1, rows, [&](const float* sums) { transform(width, out, [](const Vec& v) { return v; }, sums); });
}

// 1 / (1 + exp(-t)) and its slope, without overflow: 0, 1 and slope 0 at the far ends. NaN gives a number: exp_u20 does not pass it on.
struct Sigmoid {
  Vec value, slope;
  explicit Sigmoid(const Vec& t) {
    const Vec e = t.abs().neg().exp_u20(), upper = Vec(1.f) / (Vec(1.f) + e);  // upper: the value at |t|
    value = Vec::blendv(upper, e * upper, t < Vec(0.f));
    slope = e * upper * upper;
  }
};

}  // namespace
}  // namespace megagpt
