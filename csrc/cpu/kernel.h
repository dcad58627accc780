// What the kernels of cpu/<op>.cpp are written with: rows as streams of float vectors, whatever type they are stored as; threads that share
// rows; column sums that do not depend on the number of threads.
#pragma once

#ifndef MEGAGPT_CAPABILITY
#error "include cpu/portable.h, cpu/avx2.h or cpu/avx512.h first"
#endif

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

namespace megagpt {
namespace {

using Vec = at::vec::Vectorized<float>;
// Two float vectors: what one vector of a 16-bit type holds.
constexpr int64_t kStep = 2 * Vec::size();

// f(T*) with T the storage type.
template <class F>
void dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::f16: return f(static_cast<c10::Half*>(nullptr));
    case Dtype::bf16: return f(static_cast<c10::BFloat16*>(nullptr));
  }
}

// ------------------------------------------------------------ streams

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

// The first n < kStep elements, and `fill` behind them.
template <class T>
std::tuple<Vec, Vec> load_rest(const T* x, int64_t n, T fill = T(0.f)) {
  T rest[kStep];
  std::fill(std::copy(x, x + n, rest), rest + kStep, fill);
  return load_pair(rest);
}

template <class T>
void store_rest(T* y, int64_t n, const Vec& low, const Vec& high) {
  T rest[kStep];
  store_pair(rest, low, high);
  std::copy(rest, rest + n, y);
}

// f(v...) for all of x[0, n) of every stream at once. The ragged end is filled up with `fill`, which must be neutral to f.
template <class T, class F, class... X>
void for_each(int64_t n, T fill, const F& f, const T* x, const X*... more) {
  const auto both = [&](const auto& first, const auto&... rest) {
    f(std::get<0>(first), std::get<0>(rest)...);
    f(std::get<1>(first), std::get<1>(rest)...);
  };
  int64_t k = 0;
  for (; k + kStep <= n; k += kStep) both(load_pair(x + k), load_pair(more + k)...);
  if (k < n) both(load_rest(x + k, n - k, fill), load_rest(more + k, n - k, X(fill))...);
}

// y[i] = f(x[i]...) for i in [0, n); y may be one of the streams.
template <class T, class F, class... X>
void transform(int64_t n, T* y, const F& f, const X*... x) {
  const auto both = [&](const auto&... v) { return std::tuple(f(std::get<0>(v)...), f(std::get<1>(v)...)); };
  int64_t k = 0;
  for (; k + kStep <= n; k += kStep) {
    const auto [low, high] = both(load_pair(x + k)...);
    store_pair(y + k, low, high);
  }
  if (k < n) {
    const auto [low, high] = both(load_rest(x + k, n - k)...);
    store_rest(y + k, n - k, low, high);
  }
}

inline float reduce_max(const Vec& v) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return at::vec::maximum(a, b); }, v);
}

inline float reduce_sum(const Vec& v) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return a + b; }, v);
}

// -inf of nothing; NaN where there is one.
template <class T>
float max_of(const T* x, int64_t n) {
  const T least(-std::numeric_limits<float>::infinity());
  Vec low(least), high(least);  // two, so that one waits less for the other
  int64_t k = 0;
  const auto both = [&](const auto& pair) {
    low = at::vec::maximum(low, std::get<0>(pair));
    high = at::vec::maximum(high, std::get<1>(pair));
  };
  for (; k + kStep <= n; k += kStep) both(load_pair(x + k));
  if (k < n) both(load_rest(x + k, n - k, least));
  return reduce_max(at::vec::maximum(low, high));
}

// A sum of many vectors. A float that counts to 50,000 by ones and less loses digits, so they are first added up in blocks.
class RowSum {
 public:
  void add(const Vec& v) {
    block_ += v;
    if (++count_ == kBlock) {
      total_ += block_;
      block_ = Vec(0.f);
      count_ = 0;
    }
  }
  float value() const { return reduce_sum(total_ + block_); }

 private:
  static constexpr int kBlock = 32;
  Vec total_{0.f}, block_{0.f};
  int count_ = 0;
};

// ------------------------------------------------------------ threads

// Elements that make a second thread worth waking.
constexpr int64_t kGrain = 32768;

// row(r) for every row, by several threads where there is enough to do.
template <class F>
void parallel_rows(int64_t num_rows, int64_t width, const F& row) {
  at::parallel_for(0, num_rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) row(r);
  });
}

// Sums over rows of several quantities for each column: rows(begin, end, sums) adds the rows [begin, end) into sums[num_sums * width];
// done(sums) takes the total. Rows are cut into parts that do not depend on the number of threads, so neither does the result.
template <class F, class G>
void column_sums(int64_t num_rows, int64_t width, int64_t num_sums, const F& rows, const G& done) {
  constexpr int64_t kMaxParts = 16;
  const int64_t least = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  const int64_t parts = std::clamp<int64_t>(num_rows / least, 1, kMaxParts), size = num_sums * width;
  std::vector<float> sums(parts * size, 0.f);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) rows(p * num_rows / parts, (p + 1) * num_rows / parts, sums.data() + p * size);
  });
  for (int64_t p = 1; p < parts; ++p) {
    transform(size, sums.data(), [](const Vec& a, const Vec& b) { return a + b; }, sums.data(), sums.data() + p * size);
  }
  done(static_cast<const float*>(sums.data()));
}

}  // namespace
}  // namespace megagpt
