// A thread takes one pack of each half, or one pack of neighbouring pairs, and turns it in several heads of a token with the same cosines and
// sines. Lanes: packs of a head (x), heads (y), tokens (z). Memory moves once, 16 bytes at a time where sizes, strides and addresses allow; the
// table's rows, which the heads share, come from the cache. Every element is computed by itself: nothing depends on the order of threads.
#include "ops/rotary.h"

#include "cuda/vec.cuh"

#include <algorithm>

namespace megagpt {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Heads that a thread serves one after another, if there are enough.
constexpr int kHeads = 4;

// M cosines or sines.
template <int M>
struct Angles {
  float v[M];
};

template <int M>
__device__ __forceinline__ Angles<M> load_angles(const float* p) {
  Angles<M> angles;
  if constexpr (M % kLanes<float> == 0) {
#pragma unroll
    for (int i = 0; i < M; i += kLanes<float>) {
      const auto pack = load_shared_by_rows<kLanes<float>>(p + i);
      memcpy(angles.v + i, pack.v, sizeof pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < M; ++i) angles.v[i] = p[i];
  }
  return angles;
}

__device__ __forceinline__ float first_turned(float u, float v, float c, float s) { return u * c - v * s; }
__device__ __forceinline__ float second_turned(float u, float v, float c, float s) { return v * c + u * s; }

template <class T, int N, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rotary_kernel(Rotary a) {
  const int64_t token = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (token >= a.tokens) return;
  const int64_t half = a.size / 2;
  int64_t position = a.positions[token];
  position = position < 0 ? 0 : position < a.max_position ? position : a.max_position - 1;
  const float *cos = a.cos + position * half, *sin = a.sin + position * half, sign = a.inverse ? -1.f : 1.f;
  const T* const x = static_cast<const T*>(a.x) + a.x_tokens.offset(token);
  T* const y = static_cast<T*>(a.y) + token * a.heads * a.width;

  // Of each half, or of neighbours, whose single elements are one pair.
  constexpr int kPairs = kInterleaved && N > 1 ? N / 2 : N;
#pragma unroll 1
  for (int64_t k = threadIdx.x * kPairs; k < half; k += blockDim.x * kPairs) {
    const auto c = load_angles<kPairs>(cos + k);
    auto s = load_angles<kPairs>(sin + k);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) s.v[i] *= sign;
    const int64_t first = kInterleaved ? 2 * k : k, second = kInterleaved ? 2 * k + 1 : half + k;
#pragma unroll 1
    for (int64_t head = threadIdx.y; head < a.heads; head += blockDim.y) {
      const T* from = x + head * a.x_head_stride;
      T* to = y + head * a.width;
      if constexpr (kInterleaved && N > 1) {
        auto pack = load<N>(from + first);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const float u = to_float(pack.v[2 * i]), v = to_float(pack.v[2 * i + 1]);
          pack.v[2 * i] = from_float<T>(first_turned(u, v, c.v[i], s.v[i]));
          pack.v[2 * i + 1] = from_float<T>(second_turned(u, v, c.v[i], s.v[i]));
        }
        store<N>(to + first, pack);
      } else {
        auto low = load<N>(from + first), high = load<N>(from + second);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float u = to_float(low.v[i]), v = to_float(high.v[i]);
          low.v[i] = from_float<T>(first_turned(u, v, c.v[i], s.v[i]));
          high.v[i] = from_float<T>(second_turned(u, v, c.v[i], s.v[i]));
        }
        store<N>(to + first, low);
        store<N>(to + second, high);
      }
    }
  }
#pragma unroll 1
  for (int64_t head = threadIdx.y; head < a.heads; head += blockDim.y) {
#pragma unroll 1
    for (int64_t k = a.size + threadIdx.x * N; k < a.width; k += blockDim.x * N) {
      store<N>(y + head * a.width + k, load<N>(x + head * a.x_head_stride + k));
    }
  }
}

template <class T, int N, bool kInterleaved>
void rotary(const Rotary& a, CUstream_st* stream) {
  const int64_t turned = kInterleaved && N > 1 ? a.size / N : a.size / 2 / N, copied = (a.width - a.size) / N;
  const int64_t x = std::clamp<int64_t>(std::max(turned, copied), 1, kThreads);
  const int64_t y = std::min<int64_t>(ceil_div<int64_t>(a.heads, kHeads), kThreads / x);
  const int64_t z = std::clamp<int64_t>(kThreads / (x * y), 1, 64);  // the most that CUDA allows
  LAUNCH((rotary_kernel<T, N, kInterleaved>), grid(ceil_div(a.tokens, z)), dim3(x, y, z), 0, stream, a);
}

// Do all packs begin at a 16-byte address?
template <class T>
bool wide(const Rotary& a) {
  constexpr int N = kLanes<T>;
  bool fits = aligned<T>(a.width, a.x, a.y) && a.size % (a.interleaved ? N : 2 * N) == 0 && a.x_head_stride % N == 0;
  fits = fits && aligned<float>(0, a.cos, a.sin);  // their rows then lie well by the size
  for (int dim = 0; dim < a.x_tokens.dims; ++dim) fits = fits && a.x_tokens.strides[dim] % N == 0;
  return fits;
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const Rotary& a) {
  using namespace cuda;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    constexpr int N = kLanes<T>;
    if (wide<T>(a)) {
      a.interleaved ? rotary<T, N, true>(a, on.stream) : rotary<T, N, false>(a, on.stream);
    } else {
      a.interleaved ? rotary<T, 1, true>(a, on.stream) : rotary<T, 1, false>(a, on.stream);
    }
  });
}

}  // namespace megagpt
