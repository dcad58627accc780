// One thread for each row. The backward pass sums columns while it writes, each part of the rows with sums of its own.
#include "ops/bias_gelu.h"

#include "cpu/columns.h"

namespace megagpt {
namespace {

// Each has y = v * value and grad_x = grad_y * slope.
struct TanhGelu {
  // u(v) without its cubic term overflows far beyond where s has reached 0 or 1.
  static constexpr float kScale = 2.f * 0.7978845608f, kCubic = 0.044715f, kFar = 20.f;
  static Sigmoid sigmoid(const Vec& v) { return Sigmoid(v * at::vec::fmadd(v * v, Vec(kScale * kCubic), Vec(kScale))); }
  static Vec value(const Vec& v) { return v * sigmoid(v).value; }
  static Vec slope(const Vec& v) {
    const Sigmoid s = sigmoid(v);
    const Vec near = at::vec::clamp(v, Vec(-kFar), Vec(kFar));
    const Vec du = near * at::vec::fmadd(near * near, Vec(3.f * kScale * kCubic), Vec(kScale));
    return at::vec::fmadd(s.slope, du, at::vec::fmadd(v, Vec(0.f), s.value));  // v * 0: NaN where v is infinite
  }
};

struct ExactGelu {
  Vec probability, density;
  // erfc by Abramowitz & Stegun 7.1.26, wrong by less than 1.5e-7, as at::vec's erf is. Its exponential is the density's too.
  explicit ExactGelu(const Vec& v) {
    const Vec e = (v * v * Vec(-0.5f)).exp_u20();
    const Vec t = Vec(1.f) / at::vec::fmadd(v.abs(), Vec(0.3275911f * 0.70710678f), Vec(1.f));
    Vec tail(1.061405429f);
    for (float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) tail = at::vec::fmadd(tail, t, Vec(coefficient));
    tail = tail * t * e * Vec(0.5f);  // the probability at -|v|
    probability = Vec::blendv(Vec(1.f) - tail, tail, v < Vec(0.f));
    density = e * Vec(0.39894228f);
  }
  static Vec value(const Vec& v) { return v * ExactGelu(v).probability; }
  static Vec slope(const Vec& v) {
    const ExactGelu g(v);
    return at::vec::fmadd(v, g.density, g.probability);
  }
};

template <class Gelu, class T>
void forward(const BiasGeluForward& a) {
  const int64_t n = a.width;
  const auto *x = static_cast<const T*>(a.x), *bias = static_cast<const T*>(a.bias);
  auto* y = static_cast<T*>(a.y);
  parallel_rows(a.rows, n, [&](int64_t r) {
    if (bias) {
      transform(n, y + r * n, [](const Vec& v, const Vec& b) { return Gelu::value(v + b); }, x + r * n, bias);
    } else {
      transform(n, y + r * n, Gelu::value, x + r * n);
    }
  });
}

template <class Gelu, class T>
void backward(const BiasGeluBackward& a) {
  const int64_t n = a.width;
  const auto *grad_y = static_cast<const T*>(a.grad_y), *x = static_cast<const T*>(a.x), *bias = static_cast<const T*>(a.bias);
  auto* grad_x = static_cast<T*>(a.grad_x);
  if (!bias) {
    return parallel_rows(a.rows, n, [&](int64_t r) {
      transform(n, grad_x + r * n, [](const Vec& g, const Vec& v) { return g * Gelu::slope(v); }, grad_y + r * n, x + r * n);
    });
  }
  sum_rows(a.rows, n, static_cast<T*>(a.grad_bias), [&](int64_t r, float* sums) {
    const auto slope = [](const Vec& g, const Vec& v, const Vec& b) { return std::array{g * Gelu::slope(v + b)}; };
    transform_and_sum(n, std::array{grad_x + r * n}, std::array{sums}, slope, grad_y + r * n, x + r * n, bias);
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const BiasGeluForward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { a.tanh ? forward<TanhGelu, T>(a) : forward<ExactGelu, T>(a); });
}

void run(MEGAGPT_CAPABILITY, const BiasGeluBackward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { a.tanh ? backward<TanhGelu, T>(a) : backward<ExactGelu, T>(a); });
}

}  // namespace megagpt
