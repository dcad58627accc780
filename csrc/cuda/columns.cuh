// For ops that treat every element by itself, and sum some of their results over rows.
//
// Blocks of 32 x 8 threads: a thread keeps to one pack of N columns and takes every 8th row of its block's part of the rows, so that what all rows
// share is loaded once, and sums of columns stay in registers until the part is done.
#pragma once

#include "common/columns.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace megagpt::cuda {

constexpr int kRowLanes = 8, kColumnThreads = kWarp * kRowLanes;
// Rows of a part where nothing is summed: four for each thread.
constexpr int64_t kFreeRows = 4 * kRowLanes;

inline dim3 column_block() { return dim3(kWarp, kRowLanes); }

// Rows of a part where columns are summed: there are at most kColumnParts.
inline int64_t summed_rows(int64_t rows) { return ceil_div<int64_t>(rows, kColumnParts); }

template <int N>
unsigned column_grid(int64_t rows, int64_t width, int64_t part_rows) {
  return grid(ceil_div(rows, part_rows) * ceil_div<int64_t>(width, kWarp * N));
}

// What a thread works on.
struct Tile {
  int64_t part, row, end, column;
};

template <int N>
__device__ __forceinline__ Tile tile(int64_t rows, int64_t width, int64_t part_rows) {
  const int64_t tiles = ceil_div<int64_t>(width, kWarp * N), part = blockIdx.x / tiles, end = (part + 1) * part_rows;
  return {part, part * part_rows + threadIdx.y, end < rows ? end : rows, (blockIdx.x % tiles * kWarp + threadIdx.x) * N};
}

// N columns of an optional row that all rows share: zero where there is none. Kept in the storage type, which takes fewer registers.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_bias(const T* bias, int64_t column) {
  return bias ? load_shared_by_rows<N>(bias + column) : Pack<T, N>{};
}

// Adds up the sums of the eight threads that share columns, in a fixed order, and stores them to this part's row of `partial`. All threads of the
// block must call. `scratch`: kColumnThreads * N floats; it may be used again at once.
template <int N>
__device__ __forceinline__ void store_sums(const float (&sums)[N], float* scratch, float* partial, int64_t column, int64_t width) {
  float* const mine = scratch + threadIdx.x;  // neighbouring threads use neighbouring banks
  __syncthreads();                            // the scratch may still be read by whoever used it before
#pragma unroll
  for (int i = 0; i < N; ++i) mine[(threadIdx.y * N + i) * kWarp] = sums[i];
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float sum = sums[i];
    for (int lane = 1; lane < kRowLanes; ++lane) sum += mine[(lane * N + i) * kWarp];
    partial[column + i] = sum;
  }
}

// out[column] = the sum of what the parts have stored.
template <class T>
void sum_columns(const float* partial, int64_t rows, int64_t width, T* out, CUstream_st* stream) {
  const int parts = rows > 0 ? static_cast<int>(ceil_div(rows, summed_rows(rows))) : 0;
  sum_parts<T>(partial, parts, width, width, out, stream);
}

// 1 / (1 + exp(-t)) and its slope, without overflow: 0, 1 and slope 0 at the far ends.
struct Sigmoid {
  float value, slope;
  __device__ __forceinline__ explicit Sigmoid(float t) {
    const float e = expf(-fabsf(t)), upper = 1.f / (1.f + e);  // upper: the value at |t|
    value = t < 0.f ? e * upper : upper;
    slope = e * upper * upper;
  }
};

}  // namespace megagpt::cuda
