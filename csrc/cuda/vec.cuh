// Storage types, and memory access 16 bytes at a time.
#pragma once

#include "cuda/simt.cuh"
#include "common/kernel.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

namespace megagpt::cuda {

// f(T*) with T the storage type.
template <class F>
void dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::f16: return f(static_cast<__half*>(nullptr));
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
  }
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// N neighbours, loaded and stored as one: 16 bytes (N = kLanes<T>), or a single element where the alignment allows no more.
template <class T>
constexpr int kLanes = 16 / sizeof(T);

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];
};

#ifdef MEGAGPT_EMULATED
#define COUNT_BYTES(kind, T, N) ::simt::count_##kind(sizeof(T) * (N))
#else
#define COUNT_BYTES(kind, T, N)
#endif

// A load of what all rows share, such as a bias: after the first rows it comes from the cache and costs no traffic, so it is not counted.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_shared_by_rows(const T* p) {
  if constexpr (N == kLanes<T>) {
    const uint4 bits = *reinterpret_cast<const uint4*>(p);
    Pack<T, N> pack;
    memcpy(&pack, &bits, sizeof bits);
    return pack;
  } else {
    return {{*p}};
  }
}

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load(const T* p) {
  COUNT_BYTES(loaded, T, N);
  return load_shared_by_rows<N>(p);
}

template <int N, class T>
__device__ __forceinline__ void store(T* p, const Pack<T, N>& pack) {
  COUNT_BYTES(stored, T, N);
  if constexpr (N == kLanes<T>) {
    // As one number of 128 bits: a uint4 is four to nvcc, which it mostly stores one by one.
    uint4 bits;
    memcpy(&bits, &pack, sizeof bits);
    const uint64_t low = bits.x | uint64_t{bits.y} << 32, high = bits.z | uint64_t{bits.w} << 32;
    *reinterpret_cast<unsigned __int128*>(p) = low | static_cast<unsigned __int128>(high) << 64;
  } else {
    static_assert(N == 1);
    *p = pack.v[0];
  }
}

// Can rows of `width` elements that begin at these addresses be read 16 bytes at a time?
template <class T, class... P>
bool aligned(int64_t width, const P*... pointers) {
  return width % kLanes<T> == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace megagpt::cuda
