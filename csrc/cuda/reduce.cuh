// Reductions over a warp and over a block; every thread gets the result, the same bits in each.
#pragma once

#include "cuda/simt.cuh"
#include "cuda/vec.cuh"

namespace megagpt::cuda {

struct Sum {
  static constexpr float kNeutral = 0.f;
  __device__ __forceinline__ static float combine(float a, float b) { return a + b; }
};

// NaN loses: whoever needs it must let it into a sum.
struct Max {
  static constexpr float kNeutral = -__builtin_huge_valf();
  __device__ __forceinline__ static float combine(float a, float b) { return fmaxf(a, b); }
};

template <class R>
__device__ __forceinline__ float reduce_warp(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = R::combine(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// All threads of the block must call. `scratch`: one float for each warp; it may be used again at once.
template <class R, int kThreads>
__device__ __forceinline__ float reduce_block(float x, float* scratch) {
  static_assert(kThreads % kWarp == 0);
  constexpr int kWarps = kThreads / kWarp;
  x = reduce_warp<R>(x);
  if constexpr (kWarps == 1) return x;
  __syncthreads();  // the scratch may still be read by whoever used it before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = R::kNeutral;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) x = R::combine(x, scratch[warp]);
  return x;
}

// out[column] = sum over the parts of partial[part * stride + column], in a fixed order. Block of 32 x 8: columns by parts.
constexpr int kPartLanes = 8;

template <class T>
__global__ void __launch_bounds__(kWarp * kPartLanes) sum_parts_kernel(const float* partial, int parts, int64_t stride, int64_t width, T* out) {
  SHARED(float, sums, kPartLanes * kWarp);
  const int64_t column = int64_t(blockIdx.x) * kWarp + threadIdx.x;
  float sum = 0.f;
  if (column < width) {
    for (int part = threadIdx.y; part < parts; part += kPartLanes) sum += partial[part * stride + column];
  }
  sums[threadIdx.y * kWarp + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
  for (int lane = 1; lane < kPartLanes; ++lane) sum += sums[lane * kWarp + threadIdx.x];
  out[column] = from_float<T>(sum);
}

template <class T>
void sum_parts(const float* partial, int parts, int64_t stride, int64_t width, T* out, CUstream_st* stream) {
  LAUNCH(sum_parts_kernel<T>, grid(ceil_div<int64_t>(width, kWarp)), dim3(kWarp, kPartLanes), 0, stream, partial, parts, stride, width, out);
}

}  // namespace megagpt::cuda
