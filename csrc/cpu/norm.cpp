// One thread for each row: a row is read from memory once and from the cache afterwards. The sums over rows of the backward pass are made in
// the same pass, each part of the rows with sums of its own.
#include "ops/norm.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

template <class T>
void forward(const NormForward& a) {
  const int64_t n = a.width;
  const auto *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  const auto *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  auto *y = static_cast<T*>(a.y), *sum = static_cast<T*>(a.sum);
  parallel_rows(a.rows, n, [&](int64_t r) {
    const T* s = x + r * n;
    if (residual) {
      transform(n, sum + r * n, [](const Vec& u, const Vec& v) { return u + v; }, s, residual + r * n);
      s = sum + r * n;
    }
    float mean = 0.f;
    if (a.center) {
      RowSum total;
      for_each(n, T(0.f), [&](const Vec& v) { total.add(v); }, s);
      a.mean[r] = mean = total.value() / n;
    }
    const Vec mean_v(mean);
    RowSum squares;
    const int64_t whole = n - n % kStep;  // what fills up the last vectors would have to be the mean itself
    for_each(whole, T(0.f), [&](const Vec& v) { squares.add((v - mean_v) * (v - mean_v)); }, s);
    float variance = squares.value();
    for (int64_t k = whole; k < n; ++k) variance += (static_cast<float>(s[k]) - mean) * (static_cast<float>(s[k]) - mean);
    const float rstd = a.rstd[r] = 1.f / std::sqrt(variance / n + a.eps);
    const Vec rstd_v(rstd);
    if (bias) {
      transform(n, y + r * n, [&](const Vec& v, const Vec& w, const Vec& b) { return at::vec::fmadd((v - mean_v) * rstd_v, w, b); }, s, weight, bias);
    } else {
      transform(n, y + r * n, [&](const Vec& v, const Vec& w) { return (v - mean_v) * rstd_v * w; }, s, weight);
    }
  });
}

template <class T>
void backward(const NormBackward& a) {
  const int64_t n = a.width;
  const auto *grad_y = static_cast<const T*>(a.grad_y), *grad_sum = static_cast<const T*>(a.grad_sum);
  const auto *sum = static_cast<const T*>(a.sum), *weight = static_cast<const T*>(a.weight);
  auto* grad_x = static_cast<T*>(a.grad_x);
  const auto rows = [&](int64_t begin, int64_t end, float* sums) {
    float *sum_weight = sums, *sum_bias = sums + n;
    for (int64_t r = begin; r < end; ++r) {
      const T *g = grad_y + r * n, *s = sum + r * n;
      const Vec mean(a.center ? a.mean[r] : 0.f), rstd(a.rstd[r]);
      RowSum total, total_h;
      for_each(n, T(0.f), [&](const Vec& d, const Vec& v, const Vec& w) {
        const Vec dw = d * w;
        total.add(dw);
        total_h.add(dw * (v - mean) * rstd);
      }, g, s, weight);
      const Vec mean_g(a.center ? total.value() / n : 0.f), mean_gh(total_h.value() / n);
      const auto slope = [&](const Vec& d, const Vec& v, const Vec& w) { return rstd * (d * w - mean_g - (v - mean) * rstd * mean_gh); };
      if (grad_sum) {
        transform(n, grad_x + r * n, [&](const Vec& d, const Vec& v, const Vec& w, const Vec& more) { return slope(d, v, w) + more; }, g, s, weight,
                  grad_sum + r * n);
      } else {
        transform(n, grad_x + r * n, slope, g, s, weight);
      }
      transform(n, sum_weight, [&](const Vec& so_far, const Vec& d, const Vec& v) { return at::vec::fmadd(d, (v - mean) * rstd, so_far); }, sum_weight, g, s);
      if (a.grad_bias) transform(n, sum_bias, [](const Vec& so_far, const Vec& d) { return so_far + d; }, sum_bias, g);
    }
  };
  column_sums(a.rows, n, 2, rows, [&](const float* sums) {
    const auto same = [](const Vec& v) { return v; };
    transform(n, static_cast<T*>(a.grad_weight), same, sums);
    if (a.grad_bias) transform(n, static_cast<T*>(a.grad_bias), same, sums + n);
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const NormForward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { forward<T>(a); });
}

void run(MEGAGPT_CAPABILITY, const NormBackward& a) {
  dispatch(a.dtype, [&]<class T>(T*) { backward<T>(a); });
}

}  // namespace megagpt
