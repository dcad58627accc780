// Forward: one block for each row, which it keeps in shared memory, so that memory is read once: 16 bytes at a time where width and addresses
// allow. Rows that do not fit are read again.
// Backward: kNormParts blocks take rows in turn and add up the columns' sums, float32; a second kernel adds the blocks' sums in a fixed order, so
// the same input gives the same bits. Rows of up to 1,024 packs are shared by teams of a block's threads, which keep their columns' sums in registers;
// of wider ones the sums are in shared memory, and where they do not fit, in global memory.
#include "ops/norm.h"

#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr int kForwardThreads = 256, kBackwardThreads = 512;

// ---------------------------------------------------------------- forward

template <class T, int N, bool kCached>
__global__ void __launch_bounds__(kForwardThreads) norm_forward_kernel(NormForward a) {
  SHARED(float, scratch, kForwardThreads / kWarp);
  using P = Pack<T, N>;
  DYNAMIC_SHARED(P, cache);  // the row; each thread reads only what it wrote itself
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + row * a.width;
  const T* residual = a.residual ? static_cast<const T*>(a.residual) + row * a.width : nullptr;
  T* sum = residual ? static_cast<T*>(a.sum) + row * a.width : nullptr;
  const auto read = [&](int64_t k) { return kCached ? cache[k / N] : load<N>((residual ? sum : x) + k); };

  float total = 0.f;
  for (int64_t k = threadIdx.x * N; k < a.width; k += kForwardThreads * N) {
    auto pack = load<N>(x + k);
    if (residual) {
      const auto more = load<N>(residual + k);
#pragma unroll
      for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(to_float(pack.v[i]) + to_float(more.v[i]));
      store<N>(sum + k, pack);
    }
    if (kCached) cache[k / N] = pack;
#pragma unroll
    for (int i = 0; i < N; ++i) total += to_float(pack.v[i]);
  }
  const float mean = a.center ? reduce_block<Sum, kForwardThreads>(total, scratch) / a.width : 0.f;

  float squares = 0.f;
  for (int64_t k = threadIdx.x * N; k < a.width; k += kForwardThreads * N) {
    const auto pack = read(k);
#pragma unroll
    for (int i = 0; i < N; ++i) squares += (to_float(pack.v[i]) - mean) * (to_float(pack.v[i]) - mean);
  }
  const float rstd = 1.f / sqrtf(reduce_block<Sum, kForwardThreads>(squares, scratch) / a.width + a.eps);
  if (threadIdx.x == 0) {
    if (a.center) a.mean[row] = mean;
    a.rstd[row] = rstd;
  }

  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y) + row * a.width;
  for (int64_t k = threadIdx.x * N; k < a.width; k += kForwardThreads * N) {
    auto pack = read(k);
    const P w = load_shared_by_rows<N>(weight + k), b = bias ? load_shared_by_rows<N>(bias + k) : P{};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float h = (to_float(pack.v[i]) - mean) * rstd * to_float(w.v[i]);
      pack.v[i] = from_float<T>(bias ? h + to_float(b.v[i]) : h);
    }
    store<N>(y + k, pack);
  }
}

template <class T, int N>
void forward(const NormForward& a, CUstream_st* stream) {
  const size_t bytes = a.width * sizeof(T);
  if (bytes <= kMaxShared) {
    LAUNCH((norm_forward_kernel<T, N, true>), grid(a.rows), kForwardThreads, bytes, stream, a);
  } else {
    LAUNCH((norm_forward_kernel<T, N, false>), grid(a.rows), kForwardThreads, 0, stream, a);
  }
}

// ---------------------------------------------------------------- backward

// The product is rounded as in the mean, not fused with the subtraction: where all terms are equal nothing is left, and rstd may be large.
__device__ __forceinline__ float grad_of(float grad_y, float weight, float h, float rstd, float mean_g, float mean_gh) {
  return rstd * (__fmul_rn(grad_y, weight) - mean_g - h * mean_gh);
}

// What a block keeps in shared memory: the columns' sums and the row, only the sums, or nothing.
enum class Keep { kAll, kSums, kNothing };

template <class T, int N, Keep kKeep>
__global__ void __launch_bounds__(kBackwardThreads, 2) norm_backward_kernel(NormBackward a) {
  using P = Pack<T, N>;
  using F = Pack<float, 4>;
  constexpr bool kCached = kKeep == Keep::kAll;
  SHARED(float, scratch, kBackwardThreads / kWarp);
  DYNAMIC_SHARED(F, shared);
  float* const partial = a.partial + int64_t(blockIdx.x) * 2 * a.width;
  float* const sums = kKeep == Keep::kNothing ? partial : &shared[0].v[0];  // of grad_weight, then of grad_bias
  P* const cache = reinterpret_cast<P*>(&shared[0].v[0] + ceil_div<int64_t>(2 * a.width, 4) * 4);  // rows of grad_y, then of sum
  const T* const weight = static_cast<const T*>(a.weight);
  const int64_t packs = a.width / N;

  // Every column belongs to one thread in all that follows.
#pragma unroll 1
  for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[k + i] = sums[a.width + k + i] = 0.f;
  }
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int64_t first = row * a.width;
    const T *grad_y = static_cast<const T*>(a.grad_y) + first, *s = static_cast<const T*>(a.sum) + first;
    const float mean = a.center ? a.mean[row] : 0.f, rstd = a.rstd[row];
    float total = 0.f, total_h = 0.f;
#pragma unroll 1  // two blocks on a multiprocessor leave 64 registers
    for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
      const P d = load<N>(grad_y + k), v = load<N>(s + k), w = load_shared_by_rows<N>(weight + k);
      if (kCached) {
        cache[k / N] = d;
        cache[packs + k / N] = v;
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float g = to_float(d.v[i]), h = (to_float(v.v[i]) - mean) * rstd;
        total += g * to_float(w.v[i]);
        total_h += g * to_float(w.v[i]) * h;
        sums[k + i] += g * h;
        sums[a.width + k + i] += g;
      }
    }
    const float mean_g = a.center ? reduce_block<Sum, kBackwardThreads>(total, scratch) / a.width : 0.f;
    const float mean_gh = reduce_block<Sum, kBackwardThreads>(total_h, scratch) / a.width;
#pragma unroll 1
    for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
      const P d = kCached ? cache[k / N] : load<N>(grad_y + k), v = kCached ? cache[packs + k / N] : load<N>(s + k);
      const P w = load_shared_by_rows<N>(weight + k), more = a.grad_sum ? load<N>(static_cast<const T*>(a.grad_sum) + first + k) : P{};
      P pack;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float h = (to_float(v.v[i]) - mean) * rstd;
        const float slope = grad_of(to_float(d.v[i]), to_float(w.v[i]), h, rstd, mean_g, mean_gh);
        pack.v[i] = from_float<T>(a.grad_sum ? slope + to_float(more.v[i]) : slope);
      }
      store<N>(static_cast<T*>(a.grad_x) + first + k, pack);
    }
  }
  if constexpr (kKeep != Keep::kNothing) {
#pragma unroll 1
    for (int64_t k = threadIdx.x * N; k < a.width; k += kBackwardThreads * N) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        partial[k + i] = sums[k + i];
        partial[a.width + k + i] = sums[a.width + k + i];
      }
    }
  }
}

// Threads that a block of teams has at most: with one pack each 72 registers are left on an H100, two blocks on a multiprocessor.
constexpr int team_threads(int packs) { return packs == 1 ? 448 : 512; }

// A team of blockDim.x threads for each of blockDim.y rows at a time; a thread has kPacks packs of every row that its team takes.
template <class T, int N, int kPacks>
__global__ void __launch_bounds__(team_threads(kPacks), kPacks == 1 ? 2 : 1) norm_backward_team_kernel(NormBackward a) {
  using P = Pack<T, N>;
  constexpr int kMaxWarps = 16;
  static_assert(team_threads(kPacks) <= kMaxWarps * kWarp);
  SHARED(float, scratch, 2 * 2 * kMaxWarps);  // two numbers of each warp, twice: the next rows' are written while these are read
  DYNAMIC_SHARED(float, columns);              // sums of the block, of grad_weight, then of grad_bias
  const int width = static_cast<int>(a.width), step = blockDim.x * N, column = threadIdx.x * N;
  const int team_warps = blockDim.x / kWarp, warp = threadIdx.y * team_warps + threadIdx.x / kWarp;
  const int rows = static_cast<int>(a.rows), stride = gridDim.x * blockDim.y;

  // This thread's packs of a row; zeros where there is no such row, or it has not so many.
  const auto fetch = [&](const void* x, int row, P (&into)[kPacks]) {
    const T* const from = static_cast<const T*>(x) + int64_t(row) * width + column;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) into[p] = row < rows && column + p * step < width ? load<N>(from + p * step) : P{};
  };
  P d[kPacks], v[kPacks];
  float sum_gh[kPacks][N] = {}, sum_g[kPacks][N] = {};
  int row = blockIdx.x * blockDim.y + threadIdx.y;
  fetch(a.grad_y, row, d);
  fetch(a.sum, row, v);
  int mine = 2 * warp;
#pragma unroll 1
  for (; row - static_cast<int>(threadIdx.y) < rows; row += stride) {  // as often for every team of the block
    const bool here = row < rows;
    const float mean = here && a.center ? a.mean[row] : 0.f, rstd = here ? a.rstd[row] : 0.f;
    P next_d[kPacks], next_v[kPacks];  // on their way while this row is worked on
    fetch(a.grad_y, row + stride, next_d);
    fetch(a.sum, row + stride, next_v);
    float total = 0.f, total_h = 0.f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const P w = column + p * step < width ? load_shared_by_rows<N>(static_cast<const T*>(a.weight) + column + p * step) : P{};
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float g = to_float(d[p].v[i]), h = (to_float(v[p].v[i]) - mean) * rstd;
        total += g * to_float(w.v[i]);
        total_h += g * to_float(w.v[i]) * h;
        sum_gh[p][i] += g * h;
        sum_g[p][i] += g;
      }
    }
    total = reduce_warp<Sum>(total);
    total_h = reduce_warp<Sum>(total_h);
    if (threadIdx.x % kWarp == 0) {
      scratch[mine] = total;
      scratch[mine + 1] = total_h;
    }
    __syncthreads();
    total = total_h = 0.f;
#pragma unroll 1
    for (int k = 0; k < team_warps; ++k) {
      total += scratch[mine - 2 * static_cast<int>(threadIdx.x / kWarp) + 2 * k];
      total_h += scratch[mine - 2 * static_cast<int>(threadIdx.x / kWarp) + 2 * k + 1];
    }
    mine ^= 2 * kMaxWarps;
    const float mean_g = a.center ? total / width : 0.f, mean_gh = total_h / width;
    const int64_t at = int64_t(row) * width + column;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (here && column + p * step < width) {
        const P w = load_shared_by_rows<N>(static_cast<const T*>(a.weight) + column + p * step);  // again: it does not stay in registers
        const P more = a.grad_sum ? load<N>(static_cast<const T*>(a.grad_sum) + at + p * step) : P{};
        P pack;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float slope = grad_of(to_float(d[p].v[i]), to_float(w.v[i]), (to_float(v[p].v[i]) - mean) * rstd, rstd, mean_g, mean_gh);
          pack.v[i] = from_float<T>(a.grad_sum ? slope + to_float(more.v[i]) : slope);
        }
        store<N>(static_cast<T*>(a.grad_x) + at + p * step, pack);
      }
      d[p] = next_d[p];
      v[p] = next_v[p];
    }
  }
  // The teams' sums, one team after the other.
  for (int team = 0; team < blockDim.y; ++team) {
    if (threadIdx.y == team) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int k = column + p * step;
        if (k >= width) continue;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          columns[k + i] = team == 0 ? sum_gh[p][i] : columns[k + i] + sum_gh[p][i];
          columns[width + k + i] = team == 0 ? sum_g[p][i] : columns[width + k + i] + sum_g[p][i];
        }
      }
    }
    __syncthreads();
  }
  float* const partial = a.partial + int64_t(blockIdx.x) * 2 * width;
#pragma unroll 1
  for (int k = threadIdx.y * blockDim.x + threadIdx.x; k < 2 * width; k += blockDim.x * blockDim.y) partial[k] = columns[k];
}

template <class T, int N, int kPacks>
int backward_in_teams(const NormBackward& a, CUstream_st* stream) {
  const int packs = static_cast<int>(a.width / N), threads = ceil_div(ceil_div(packs, kPacks), kWarp) * kWarp;
  const int teams = team_threads(kPacks) / threads;
  const int64_t turns = ceil_div<int64_t>(a.rows, teams);
  const int parts = turns < kNormParts ? static_cast<int>(turns) : kNormParts;
  LAUNCH((norm_backward_team_kernel<T, N, kPacks>), parts, dim3(threads, teams), 2 * a.width * sizeof(float), stream, a);
  return parts;
}

template <class T, int N>
int backward_in_blocks(const NormBackward& a, CUstream_st* stream) {
  const int parts = a.rows < kNormParts ? static_cast<int>(a.rows) : kNormParts;
  const size_t sums = ceil_div<int64_t>(2 * a.width, 4) * 16, all = sums + 2 * a.width * sizeof(T);
  if (all <= kMaxShared) {
    LAUNCH((norm_backward_kernel<T, N, Keep::kAll>), parts, kBackwardThreads, all, stream, a);
  } else if (sums <= kMaxShared) {
    LAUNCH((norm_backward_kernel<T, N, Keep::kSums>), parts, kBackwardThreads, sums, stream, a);
  } else {
    LAUNCH((norm_backward_kernel<T, N, Keep::kNothing>), parts, kBackwardThreads, 0, stream, a);
  }
  return parts;
}

template <class T, int N>
void backward(const NormBackward& a, CUstream_st* stream) {
  const int64_t packs = a.width / N;
  const bool few = a.rows < 1 << 30;  // so that the teams can count them in 32 bits
  const int parts = a.rows == 0                          ? 0
                    : few && packs <= team_threads(1)     ? backward_in_teams<T, N, 1>(a, stream)
                    : few && packs <= 2 * team_threads(2) ? backward_in_teams<T, N, 2>(a, stream)
                                                          : backward_in_blocks<T, N>(a, stream);
  sum_parts<T>(a.partial, parts, 2 * a.width, a.width, static_cast<T*>(a.grad_weight), stream);
  if (a.grad_bias) sum_parts<T>(a.partial + a.width, parts, 2 * a.width, a.width, static_cast<T*>(a.grad_bias), stream);
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const NormForward& a) {
  if (a.rows == 0) return;
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::aligned<T>(a.width, a.x, a.residual, a.weight, a.bias, a.y, a.sum);
    wide ? cuda::forward<T, cuda::kLanes<T>>(a, on.stream) : cuda::forward<T, 1>(a, on.stream);
  });
}

void run(Cuda on, const NormBackward& a) {
  cuda::dispatch(a.dtype, [&]<class T>(T*) {
    const bool wide = cuda::aligned<T>(a.width, a.grad_y, a.grad_sum, a.sum, a.weight, a.grad_x);
    wide ? cuda::backward<T, cuda::kLanes<T>>(a, on.stream) : cuda::backward<T, 1>(a, on.stream);
  });
}

}  // namespace megagpt
