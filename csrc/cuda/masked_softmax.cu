// Rows are read and written in packs of 16 bytes that lie at 16-byte addresses, wherever the row begins: its first and last pack, and the one at
// the causal limit, are moved element by element as far as they belong to it. Where the tensors do not lie alike, all packs are single elements.
//
// Short rows: one warp for each, which keeps it in registers. Long rows: one block for each, which keeps it in shared memory; those that do not fit,
// or in single elements, are read again. Either way every thread reads only what it wrote itself, sums are made in a fixed order, and memory moves
// once: columns that the query sees by the causal limit are read, all columns written.
//
// Probabilities carry the error of __expf, 2 + 1.2 * |s - max(s)| units in the last place: never more than 2.4e-7 of the row's largest one.
#include "ops/masked_softmax.h"

#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr float kInfinity = __builtin_huge_valf();
// A lane of a warp takes up to so many packs, of one tensor or of each of two, and a block of warps so many rows.
constexpr int kForwardPacks = 4, kBackwardPacks = 2, kWarpRows = 4;
// Such blocks on a multiprocessor of 2048 threads: the compiler may not spend more than 64 registers on a thread.
constexpr int kWarpBlocks = 8;
constexpr int kThreads = 256;

// The packs of a row: pack p holds the columns first(p) to first(p) + N - 1. Some of the first and of the last may not exist.
// I counts columns: 32 bits are enough for short rows, and spare registers.
template <int N, class I>
struct Sight {
  I keys, end;          // columns of the row, and how many of them the causal limit leaves
  const uint8_t* mask;  // of the columns; null without one
  int shift;            // columns that the first pack lacks

  template <class T, class Args>
  __device__ Sight(const Args& a, const T* x, int64_t row) : keys(static_cast<I>(a.keys)), end(keys), mask(a.mask) {
    if (a.causal) {
      const int64_t limit = row % a.queries + a.keys - a.queries + 1;
      end = limit < 0 ? 0 : static_cast<I>(limit);
    }
    if (mask) mask += row / (a.heads * a.queries) * a.keys;
    shift = static_cast<int>(reinterpret_cast<uintptr_t>(x) / sizeof(T) % N);
  }

  __device__ I first(I pack) const { return pack * N - shift; }

  // Bit i: the row sees column first + i.
  __device__ unsigned seen(I first) const {
    unsigned bits = 0;
    if (!mask || first < 0 || first + N > end || reinterpret_cast<uintptr_t>(mask + first) % N != 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (first + i >= 0 && first + i < end && (!mask || mask[first + i])) bits |= 1u << i;
      }
    } else {
      const auto bytes = *reinterpret_cast<const Pack<uint8_t, N>*>(mask + first);
#pragma unroll
      for (int i = 0; i < N; ++i) bits |= unsigned(bytes.v[i] != 0) << i;
    }
    return bits;
  }

  // Columns behind the causal limit are not read: zeros stand for them.
  template <class T>
  __device__ Pack<T, N> load(const T* x, I first) const {
    if (first >= 0 && first + N <= end) return cuda::load<N>(x + first);
    Pack<T, N> pack{};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (first + i >= 0 && first + i < end) pack.v[i] = cuda::load<1>(x + first + i).v[0];
    }
    return pack;
  }

  template <class T>
  __device__ void store(T* y, I first, const Pack<T, N>& pack) const {
    if (first >= 0 && first + N <= keys) return cuda::store<N>(y + first, pack);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (first + i >= 0 && first + i < keys) cuda::store<1>(y + first + i, {{pack.v[i]}});
    }
  }
};

// NaN and infinity need no care: NaN loses in the maximum, but not in the sum, and what is not finite makes all columns NaN that are seen.
template <int N>
__device__ __forceinline__ float largest(const float (&s)[N], unsigned seen, float top) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (seen >> i & 1) top = fmaxf(top, s[i]);
  }
  return top;
}

template <class T, int N>
__device__ __forceinline__ void scores(const Pack<T, N>& pack, float scale, float (&s)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) s[i] = to_float(pack.v[i]) * scale;
}

// The scores become exponentials, whose sum is returned.
template <int N>
__device__ __forceinline__ float exponentials(float (&s)[N], unsigned seen, float top) {
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    s[i] = seen >> i & 1 ? __expf(s[i] - top) : 0.f;
    total += s[i];
  }
  return total;
}

template <class T, int N>
__device__ __forceinline__ Pack<T, N> shares(const float (&s)[N], unsigned seen, float inverse) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(seen >> i & 1 ? s[i] * inverse : 0.f);
  return pack;
}

template <class T, int N>
__device__ __forceinline__ float dot(const Pack<T, N>& g, const Pack<T, N>& y, unsigned seen) {
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < N; ++i) total += seen >> i & 1 ? to_float(g.v[i]) * to_float(y.v[i]) : 0.f;
  return total;
}

template <class T, int N>
__device__ __forceinline__ Pack<T, N> slopes(const Pack<T, N>& g, const Pack<T, N>& y, unsigned seen, float scale, float total) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(seen >> i & 1 ? scale * to_float(y.v[i]) * (to_float(g.v[i]) - total) : 0.f);
  return pack;
}

// ---------------------------------------------------------------- short rows

template <class T, int N>
__global__ void __launch_bounds__(kWarp * kWarpRows, kWarpBlocks) softmax_forward_warp(MaskedSoftmaxForward a) {
  const int64_t row = int64_t(blockIdx.x) * kWarpRows + threadIdx.y;
  if (row >= a.batch * a.heads * a.queries) return;  // the whole warp
  const T* x = static_cast<const T*>(a.x) + row * a.keys;
  T* y = static_cast<T*>(a.y) + row * a.keys;
  const Sight<N, int> sight(a, x, row);
  float s[kForwardPacks][N], top = -kInfinity, total = 0.f;
  unsigned seen[kForwardPacks];
#pragma unroll
  for (int p = 0; p < kForwardPacks; ++p) {
    const int first = sight.first(p * kWarp + threadIdx.x);
    seen[p] = sight.seen(first);
    scores(sight.load(x, first), a.scale, s[p]);
    top = largest(s[p], seen[p], top);
  }
  top = reduce_warp<Max>(top);
#pragma unroll
  for (int p = 0; p < kForwardPacks; ++p) total += exponentials(s[p], seen[p], top);
  const float inverse = 1.f / reduce_warp<Sum>(total);
#pragma unroll
  for (int p = 0; p < kForwardPacks; ++p) sight.store(y, sight.first(p * kWarp + threadIdx.x), shares<T>(s[p], seen[p], inverse));
}

template <class T, int N>
__global__ void __launch_bounds__(kWarp * kWarpRows, kWarpBlocks) softmax_backward_warp(MaskedSoftmaxBackward a) {
  const int64_t row = int64_t(blockIdx.x) * kWarpRows + threadIdx.y;
  if (row >= a.batch * a.heads * a.queries) return;
  const T *grad_y = static_cast<const T*>(a.grad_y) + row * a.keys, *y = static_cast<const T*>(a.y) + row * a.keys;
  T* grad_x = static_cast<T*>(a.grad_x) + row * a.keys;
  const Sight<N, int> sight(a, y, row);
  Pack<T, N> g[kBackwardPacks], p[kBackwardPacks];
  unsigned seen[kBackwardPacks];
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < kBackwardPacks; ++i) {
    const int first = sight.first(i * kWarp + threadIdx.x);
    seen[i] = sight.seen(first);
    g[i] = sight.load(grad_y, first);
    p[i] = sight.load(y, first);
    total += dot(g[i], p[i], seen[i]);
  }
  total = reduce_warp<Sum>(total);
#pragma unroll
  for (int i = 0; i < kBackwardPacks; ++i) sight.store(grad_x, sight.first(i * kWarp + threadIdx.x), slopes(g[i], p[i], seen[i], a.scale, total));
}

// ---------------------------------------------------------------- long rows

template <class T, int N, bool kCached>
__global__ void __launch_bounds__(kThreads) softmax_forward_block(MaskedSoftmaxForward a) {
  using P = Pack<T, N>;
  SHARED(float, scratch, kThreads / kWarp);
  DYNAMIC_SHARED(P, cache);
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + row * a.keys;
  T* y = static_cast<T*>(a.y) + row * a.keys;
  const Sight<N, int64_t> sight(a, x, row);
  float s[N], top = -kInfinity, total = 0.f;
  for (int64_t p = threadIdx.x; sight.first(p) < sight.end; p += kThreads) {
    const P pack = sight.load(x, sight.first(p));
    if (kCached) cache[p] = pack;
    scores(pack, a.scale, s);
    top = largest(s, sight.seen(sight.first(p)), top);
  }
  top = reduce_block<Max, kThreads>(top, scratch);
  for (int64_t p = threadIdx.x; sight.first(p) < sight.end; p += kThreads) {
    scores(kCached ? cache[p] : sight.load(x, sight.first(p)), a.scale, s);
    total += exponentials(s, sight.seen(sight.first(p)), top);
  }
  const float inverse = 1.f / reduce_block<Sum, kThreads>(total, scratch);
  for (int64_t p = threadIdx.x; sight.first(p) < sight.keys; p += kThreads) {
    P pack{};
    if (sight.first(p) < sight.end) {
      const unsigned seen = sight.seen(sight.first(p));
      scores(kCached ? cache[p] : sight.load(x, sight.first(p)), a.scale, s);
      exponentials(s, seen, top);
      pack = shares<T>(s, seen, inverse);
    }
    sight.store(y, sight.first(p), pack);
  }
}

template <class T, int N, bool kCached>
__global__ void __launch_bounds__(kThreads) softmax_backward_block(MaskedSoftmaxBackward a) {
  using P = Pack<T, N>;
  SHARED(float, scratch, kThreads / kWarp);
  DYNAMIC_SHARED(P, cache);  // of each pack grad_y, then y
  const int64_t row = blockIdx.x;
  const T *grad_y = static_cast<const T*>(a.grad_y) + row * a.keys, *y = static_cast<const T*>(a.y) + row * a.keys;
  T* grad_x = static_cast<T*>(a.grad_x) + row * a.keys;
  const Sight<N, int64_t> sight(a, y, row);
  float total = 0.f;
  for (int64_t p = threadIdx.x; sight.first(p) < sight.end; p += kThreads) {
    const int64_t first = sight.first(p);
    const P g = sight.load(grad_y, first), probability = sight.load(y, first);
    if (kCached) {
      cache[2 * p] = g;
      cache[2 * p + 1] = probability;
    }
    total += dot(g, probability, sight.seen(first));
  }
  total = reduce_block<Sum, kThreads>(total, scratch);
  for (int64_t p = threadIdx.x; sight.first(p) < sight.keys; p += kThreads) {
    const int64_t first = sight.first(p);
    P pack{};
    if (first < sight.end) {
      pack = slopes(kCached ? cache[2 * p] : sight.load(grad_y, first), kCached ? cache[2 * p + 1] : sight.load(y, first), sight.seen(first), a.scale,
                    total);
    }
    sight.store(grad_x, first, pack);
  }
}

// ---------------------------------------------------------------- launches

// Do these addresses lie alike towards 16 bytes, and an element's size apart?
template <class T, class... P>
bool alike(const P*... pointers) {
  const uintptr_t sum[] = {reinterpret_cast<uintptr_t>(pointers) % 16 ...};
  bool same = sum[0] % sizeof(T) == 0;
  for (uintptr_t one : sum) same = same && one == sum[0];
  return same;
}

// Packs of a row, wherever it begins.
template <class T>
int64_t packs_of(int64_t keys, const void* x) {
  return aligned<T>(keys, x) ? keys / kLanes<T> : ceil_div<int64_t>(keys + kLanes<T> - 1, kLanes<T>);
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const MaskedSoftmaxForward& a) {
  using namespace cuda;
  const int64_t rows = a.batch * a.heads * a.queries;
  if (rows * a.keys == 0) return;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    constexpr int N = kLanes<T>;
    const int64_t packs = packs_of<T>(a.keys, a.x);
    if (!alike<T>(a.x, a.y)) {
      LAUNCH((softmax_forward_block<T, 1, false>), grid(rows), kThreads, 0, on.stream, a);
    } else if (packs <= kWarp * kForwardPacks) {
      LAUNCH((softmax_forward_warp<T, N>), grid(ceil_div<int64_t>(rows, kWarpRows)), dim3(kWarp, kWarpRows), 0, on.stream, a);
    } else if (packs * 16 <= int64_t(kMaxShared)) {
      LAUNCH((softmax_forward_block<T, N, true>), grid(rows), kThreads, packs * 16, on.stream, a);
    } else {
      LAUNCH((softmax_forward_block<T, N, false>), grid(rows), kThreads, 0, on.stream, a);
    }
  });
}

void run(Cuda on, const MaskedSoftmaxBackward& a) {
  using namespace cuda;
  const int64_t rows = a.batch * a.heads * a.queries;
  if (rows * a.keys == 0) return;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    constexpr int N = kLanes<T>;
    const int64_t packs = packs_of<T>(a.keys, a.y);
    if (!alike<T>(a.grad_y, a.y, a.grad_x)) {
      LAUNCH((softmax_backward_block<T, 1, false>), grid(rows), kThreads, 0, on.stream, a);
    } else if (packs <= kWarp * kBackwardPacks) {
      LAUNCH((softmax_backward_warp<T, N>), grid(ceil_div<int64_t>(rows, kWarpRows)), dim3(kWarp, kWarpRows), 0, on.stream, a);
    } else if (packs * 32 <= int64_t(kMaxShared)) {
      LAUNCH((softmax_backward_block<T, N, true>), grid(rows), kThreads, packs * 32, on.stream, a);
    } else {
      LAUNCH((softmax_backward_block<T, N, false>), grid(rows), kThreads, 0, on.stream, a);
    }
  });
}

}  // namespace megagpt
