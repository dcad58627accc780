// A row that may begin at any address, such as one of 50257 columns, read 16 bytes at a time all the same.
#pragma once

#include "cuda/vec.cuh"

namespace megagpt::cuda {

// f(k, pack) for all of x[0, n), where the pack is Pack<T, M> of x[k, k + M): single elements up to the first 16-byte boundary, whole packs of N,
// single elements again. The row is shared by `count` threads, at least a warp; this one is number `index`.
template <int N, class T, class F>
__device__ __forceinline__ void for_each_pack(const T* x, int64_t n, int index, int count, const F& f) {
  int64_t head = (16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(T);
  head = N == 1 ? 0 : head < n ? head : n;
  const int64_t packs = (n - head) / N, single = n - packs * N;
#pragma unroll 1
  for (int64_t k = index; k < packs; k += count) f(head + k * N, load<N>(x + head + k * N));
  if (N > 1 && index < single) {  // fewer than 2 * N
    const int64_t k = index < head ? index : packs * N + index;
    f(k, load<1>(x + k));
  }
}

}  // namespace megagpt::cuda
