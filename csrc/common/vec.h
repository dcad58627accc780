// A row as a stream of float vectors, whatever type it is stored as (CPU only).
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>

namespace megagpt {

using Vec = at::vec::Vectorized<float>;
// Two float vectors: what one vector of a 16-bit type holds.
constexpr int64_t kStep = 2 * Vec::size();

template <class T>
std::tuple<Vec, Vec> load_pair(const T* x) {
  if constexpr (std::is_same_v<T, float>) {
    return {Vec::loadu(x), Vec::loadu(x + Vec::size())};
  } else {
    return at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(x));
  }
}

template <class T>
void store_pair(T* y, const Vec& low, const Vec& high) {
  if constexpr (std::is_same_v<T, float>) {
    low.store(y);
    high.store(y + Vec::size());
  } else {
    at::vec::convert_from_float<T>(low, high).store(y);
  }
}

// f(v) for all of x[0, n). The ragged end is filled up with `fill`, which must be neutral to f.
template <class T, class F>
void for_each(const T* x, int64_t n, T fill, const F& f) {
  const auto step = [&](const T* from) {
    const auto [low, high] = load_pair(from);
    f(low);
    f(high);
  };
  int64_t k = 0;
  for (; k + kStep <= n; k += kStep) step(x + k);
  if (k < n) {
    T rest[kStep];
    std::fill(std::copy(x + k, x + n, rest), rest + kStep, fill);
    step(rest);
  }
}

// y[i] = f(x[i]) for i in [0, n)
template <class T, class F>
void transform(const T* x, T* y, int64_t n, const F& f) {
  const auto step = [&](const T* from, T* to) {
    const auto [low, high] = load_pair(from);
    store_pair(to, f(low), f(high));
  };
  int64_t k = 0;
  for (; k + kStep <= n; k += kStep) step(x + k, y + k);
  if (k < n) {
    T rest[kStep] = {};
    std::copy(x + k, x + n, rest);
    step(rest, rest);
    std::copy(rest, rest + (n - k), y + k);
  }
}

inline float reduce_max(const Vec& v) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return at::vec::maximum(a, b); }, v);
}

inline float reduce_sum(const Vec& v) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return a + b; }, v);
}

}  // namespace megagpt
