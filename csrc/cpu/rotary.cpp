// One thread for each token: the table's row stays in the cache while its heads pass.
#include "ops/rotary.h"

#include "cpu/kernel.h"

namespace megagpt {
namespace {

// Cosines and sines of the angle, or of its negative.
struct Turn {
  Vec cos, sin;

  std::tuple<Vec, Vec> operator()(const Vec& u, const Vec& v) const { return {u * cos - v * sin, v * cos + u * sin}; }
};

// Pairs (x[k], x[half + k]).
template <class T>
void turn_halves(int64_t half, const T* x, const float* cos, const float* sin, const Vec& sign, T* y) {
  const auto step = [&](const auto& u, const auto& v, const auto& c, const auto& s) {
    const auto [u_low, v_low] = Turn{std::get<0>(c), std::get<0>(s) * sign}(std::get<0>(u), std::get<0>(v));
    const auto [u_high, v_high] = Turn{std::get<1>(c), std::get<1>(s) * sign}(std::get<1>(u), std::get<1>(v));
    return std::tuple(u_low, u_high, v_low, v_high);
  };
  int64_t k = 0;
  for (; k + kStep <= half; k += kStep) {
    const auto [u_low, u_high, v_low, v_high] = step(load_pair(x + k), load_pair(x + half + k), load_pair(cos + k), load_pair(sin + k));
    store_pair(y + k, u_low, u_high);
    store_pair(y + half + k, v_low, v_high);
  }
  if (const int64_t n = half - k; n > 0) {
    const auto [u_low, u_high, v_low, v_high] = step(load_rest(x + k, n), load_rest(x + half + k, n), load_rest(cos + k, n), load_rest(sin + k, n));
    store_rest(y + k, n, u_low, u_high);
    store_rest(y + half + k, n, v_low, v_high);
  }
}

// Pairs (x[2 * k], x[2 * k + 1]).
template <class T>
void turn_neighbours(int64_t half, const T* x, const float* cos, const float* sin, const Vec& sign, T* y) {
  const auto step = [&](const auto& pair, const Vec& c, const Vec& s) {
    const auto [u, v] = at::vec::deinterleave2(std::get<0>(pair), std::get<1>(pair));
    const auto [turned_u, turned_v] = Turn{c, s * sign}(u, v);
    return at::vec::interleave2(turned_u, turned_v);
  };
  int64_t k = 0;
  for (; k + Vec::size() <= half; k += Vec::size()) {
    const auto [low, high] = step(load_pair(x + 2 * k), Vec::loadu(cos + k), Vec::loadu(sin + k));
    store_pair(y + 2 * k, low, high);
  }
  if (const int64_t n = half - k; n > 0) {
    const auto [low, high] = step(load_rest(x + 2 * k, 2 * n), Vec::loadu(cos + k, n), Vec::loadu(sin + k, n));
    store_rest(y + 2 * k, 2 * n, low, high);
  }
}

template <class T>
void rotary(const Rotary& a) {
  const int64_t half = a.size / 2;
  const Vec sign(a.inverse ? -1.f : 1.f);
  parallel_rows(a.tokens, a.heads * a.width, [&](int64_t token) {
    const T* x = static_cast<const T*>(a.x) + a.x_tokens.offset(token);
    T* y = static_cast<T*>(a.y) + token * a.heads * a.width;
    const float *cos = a.cos + a.positions[token] * half, *sin = a.sin + a.positions[token] * half;
    for (int64_t head = 0; head < a.heads; ++head, x += a.x_head_stride, y += a.width) {
      a.interleaved ? turn_neighbours(half, x, cos, sin, sign, y) : turn_halves(half, x, cos, sin, sign, y);
      std::copy(x + a.size, x + a.width, y + a.size);
    }
  });
}

}  // namespace

void run(MEGAGPT_CAPABILITY, const Rotary& a) {
  for (int64_t token = 0; token < a.tokens; ++token) {
    TORCH_CHECK(a.positions[token] >= 0 && a.positions[token] < a.max_position, "rotary: positions[", token, "] is ", a.positions[token],
                "; it must be in [0, ", a.max_position, "), the rows of the table");
  }
  dispatch(a.dtype, [&]<class T>(T*) { rotary<T>(a); });
}

}  // namespace megagpt
