// One thread for each row. The backward pass sums columns while it writes, each part of the rows with sums of its own.
#include "ops/bias_swiglu.h"

#include "cpu/columns.h"

namespace megagpt {
namespace {

Vec forward_of(const Vec& a, const Vec& b) { return a * Sigmoid(a).value * b; }

// Of gate, then of up.
std::array<Vec, 2> backward_of(const Vec& g, const Vec& a, const Vec& b) {
  const Sigmoid s(a);
  return {g * b * at::vec::fmadd(a, s.slope, s.value), g * a * s.value};
}

template <class T>
void forward(const BiasSwigluForward& a) {
  const int64_t n = a.width;
  const auto *x = static_cast<const T*>(a.x), *bias = static_cast<const T*>(a.bias);
  auto* y = static_cast<T*>(a.y);
  parallel_rows(a.rows, n, [&](int64_t r) {
    const T *gate = x + r * 2 * n, *up = gate + n;
    if (bias) {
      const auto biased = [](const Vec& g, const Vec& u, const Vec& bg, const Vec& bu) { return forward_of(g + bg, u + bu); };
      transform(n, y + r * n, biased, gate, up, bias, bias + n);
    } else {
      transform(n, y + r * n, forward_of, gate, up);
    }
  });
}

template <class T>
void backward(const BiasSwigluBackward& a) {
  const int64_t n = a.width;
  const auto *grad_y = static_cast<const T*>(a.grad_y), *x = static_cast<const T*>(a.x), *bias = static_cast<const T*>(a.bias);
  auto* grad_x = static_cast<T*>(a.grad_x);
  const auto halves = [&](auto* p) { return std::array{p, p + n}; };
  if (!bias) {
    return parallel_rows(a.rows, n, [&](int64_t r) {
      const auto [gate, up] = halves(x + r * 2 * n);
      transform_and_sum(n, halves(grad_x + r * 2 * n), std::array<float*, 2>{}, backward_of, grad_y + r * n, gate, up);
    });
  }
  sum_rows(a.rows, 2 * n, static_cast<T*>(a.grad_bias), [&](int64_t r, float* sums) {
    const auto [gate, up] = halves(x + r * 2 * n);
    const auto biased = [](const Vec& g, const Vec& a, const Vec& b, const Vec& bias_a, const Vec& bias_b) {
      return backward_of(g, a + bias_a, b + bias_b);
    };
    transform_and_sum(n, halves(grad_x + r * 2 * n), halves(sums), biased, grad_y + r * n, gate, up, bias, bias + n);
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const BiasSwigluForward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { forward<T>(a); });
}

void run(MEGAGPT_CAPABILITY, const BiasSwigluBackward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { backward<T>(a); });
}

}  // namespace megagpt
