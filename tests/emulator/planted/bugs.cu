// Kernels with one mistake each, for tests/kernels/test_emulator.py: what a line marked "BUG name" does must be found.
#include "../cases/cases.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

#include <sys/mman.h>

using namespace megagpt::cuda;

namespace {

constexpr int kThreads = 64;

__global__ void missing_barrier(float* y) {
  SHARED(float, s, kThreads);
  s[threadIdx.x] = y[threadIdx.x];       // BUG missing_barrier
  y[threadIdx.x] = s[63 - threadIdx.x];  // BUG missing_barrier
}

// The race detector must not take the first barrier for an order of what comes after it.
__global__ void missing_second_barrier(float* y) {
  SHARED(float, s, kThreads);
  SHARED(float, t, kThreads);
  s[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  t[threadIdx.x] = s[63 - threadIdx.x];  // BUG missing_second_barrier
  y[threadIdx.x] = t[63 - threadIdx.x];  // BUG missing_second_barrier
}

// Each thread reads its neighbour's, which a shuffle would order and nothing here does.
__global__ void missing_warp_barrier(float* y) {
  SHARED(float, s, kThreads);
  s[threadIdx.x] = y[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
  s[threadIdx.x] = 2.f;                       // BUG missing_warp_barrier
  y[threadIdx.x] += s[threadIdx.x ^ 1];       // BUG missing_warp_barrier
}

__global__ void scratch_reused(float* y) {
  SHARED(float, s, kThreads / kWarp);
  float x = y[threadIdx.x];
  for (int k = 0; k < 2; ++k) {
    x = reduce_warp<Sum>(x);
    if (threadIdx.x % kWarp == 0) s[threadIdx.x / kWarp] = x;  // BUG scratch_reused
    __syncthreads();
    x = s[0] + s[1];  // BUG scratch_reused
  }
  y[threadIdx.x] = x;
}

__global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 40) {
    __syncthreads();  // BUG divergent_barrier
  } else {
    y[threadIdx.x] = 1.f;
    __syncthreads();  // BUG divergent_barrier
  }
}

__global__ void early_return(float* y, int n) {
  if (int(threadIdx.x) >= n) return;
  __syncthreads();  // BUG early_return
  y[threadIdx.x] = 1.f;
}

__global__ void divergent_shuffle(float* y) {
  float x = 1.f;
  if (threadIdx.x < 20) x += __shfl_xor_sync(kAllLanes, x, 1);  // BUG divergent_shuffle
  y[threadIdx.x] = x;
}

// Half of the warp waits at a barrier, the other half for it.
__global__ void deadlock(float* y) {
  if (threadIdx.x % kWarp < 16) {
    __syncthreads();  // BUG deadlock
  } else {
    y[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.f, 1);  // BUG deadlock
    __syncthreads();
  }
}

__global__ void lane_outside_mask(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffff, 1.f, 16);  // BUG lane_outside_mask
}

__global__ void lane_not_in_mask(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0xffff, 1.f, 1);  // BUG lane_not_in_mask
}

__global__ void shared_out_of_bounds(float* y) {
  SHARED(float, s, kThreads);
  s[threadIdx.x + 1] = 1.f;  // BUG shared_out_of_bounds
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void dynamic_shared_out_of_bounds(float* y) {
  DYNAMIC_SHARED(float, s);
  s[threadIdx.x] = 1.f;  // BUG dynamic_shared_out_of_bounds
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void one_past_the_end(float* y, int n) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k <= n) y[k] = 1.f;  // BUG one_past_the_end
}

__global__ void one_before_the_start(float* y) {
  y[0] = y[int(threadIdx.x) - 1];  // BUG one_before_the_start
}

__global__ void misaligned(float* y) {
  *reinterpret_cast<uint4*>(y + 1) = uint4{1, 2, 3, 4};  // BUG misaligned
}

__global__ void unset_shared(float* y) {
  SHARED(float, s, kThreads);
  if (threadIdx.x < 63) s[threadIdx.x] = 0.f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void race_between_blocks(float* y) {
  y[threadIdx.x] += 1.f;  // BUG race_between_blocks
}

// Barriers order the threads of a block, never blocks.
__global__ void race_between_blocks_with_barriers(float* y) {
  if (blockIdx.x == 0) y[threadIdx.x] = 1.f;  // BUG race_between_blocks_with_barriers
  __syncthreads();
  reduce_warp<Sum>(1.f);
  if (blockIdx.x == 1) y[threadIdx.x] = 2.f;  // BUG race_between_blocks_with_barriers
}

__global__ void row_times_width_32_bits(float* y, int width) {
  const int row = blockIdx.x;
  y[row * width] = 1.f;  // BUG row_times_width_32_bits
}

__global__ void nothing(float*) {}

__global__ void too_many_shared_arrays(float* y) {
  SHARED(float, s, 25 * 1024);
  SHARED(float, t, 20 * 1024);  // BUG too_much_shared_in_all
  y[threadIdx.x] = s[0] + t[0];
}

__global__ void shared_beside_dynamic(float* y) {
  SHARED(float, s, 2 * 1024 + 1);  // BUG shared_not_asked_for
  y[threadIdx.x] = s[0];
}

}  // namespace

#define PLANTED(name, ...)                                          \
  CASES(name) {                                                     \
    const Buffer y = floats(kThreads);                              \
    LAUNCH(name, __VA_ARGS__);                                      \
  }
PLANTED(missing_barrier, 1, kThreads, 0, nullptr, y)
PLANTED(missing_second_barrier, 1, kThreads, 0, nullptr, y)
PLANTED(missing_warp_barrier, 1, kThreads, 0, nullptr, y)
PLANTED(scratch_reused, 1, kThreads, 0, nullptr, y)
PLANTED(divergent_barrier, 1, kThreads, 0, nullptr, y)
PLANTED(early_return, 1, kThreads, 0, nullptr, y, 40)
PLANTED(divergent_shuffle, 1, kThreads, 0, nullptr, y)
PLANTED(deadlock, 1, kThreads, 0, nullptr, y)
PLANTED(lane_outside_mask, 1, kThreads, 0, nullptr, y)
PLANTED(lane_not_in_mask, 1, kThreads, 0, nullptr, y)
PLANTED(shared_out_of_bounds, 1, kThreads, 0, nullptr, y)
PLANTED(dynamic_shared_out_of_bounds, 1, kThreads, (kThreads - 1) * sizeof(float), nullptr, y)
PLANTED(one_past_the_end, 2, 48, 0, nullptr, y, kThreads)
PLANTED(one_before_the_start, 1, 1, 0, nullptr, y)
PLANTED(misaligned, 1, 1, 0, nullptr, y)
PLANTED(race_between_blocks, 2, kThreads, 0, nullptr, y)
PLANTED(race_between_blocks_with_barriers, 2, kThreads, 0, nullptr, y)

// Limits of a launch. The marks stand on the lines that launch.
#define LAUNCHES(name, kernel, ...)    \
  CASES(name) {                        \
    const Buffer y = floats(kThreads); \
    LAUNCH(kernel, __VA_ARGS__, y);    \
  }
LAUNCHES(block_of_0, nothing, 1, 0, 0, nullptr)                              // BUG block_of_0
LAUNCHES(block_of_1025, nothing, 1, 1025, 0, nullptr)                        // BUG block_of_1025
LAUNCHES(block_of_65_along_z, nothing, 1, dim3(1, 1, 65), 0, nullptr)        // BUG block_of_65_along_z
LAUNCHES(grid_of_0, nothing, 0, kThreads, 0, nullptr)                        // BUG grid_of_0
LAUNCHES(grid_too_high, nothing, dim3(1, 65536), kThreads, 0, nullptr)       // BUG grid_too_high
LAUNCHES(too_much_shared, nothing, 1, kThreads, 163 * 1024 + 1, nullptr)     // BUG too_much_shared
LAUNCHES(too_much_shared_in_all, too_many_shared_arrays, 1, 1, 41 * 1024, nullptr)
LAUNCHES(shared_not_asked_for, shared_beside_dynamic, 1, 1, 40 * 1024, nullptr)

CASES(unset_shared) {
  const Buffer y = floats(kThreads);
  LAUNCH(unset_shared, 1, kThreads, 0, nullptr, y);
  const float* values = y;
  if (values[62] != 0 || !std::isnan(values[63])) throw std::runtime_error("unset_shared: " + std::to_string(values[63]) + " instead of NaN");
  throw std::runtime_error("unset_shared: NaN");
}

// A matrix of 2.8e9 elements, of which one is touched. What lies below it is kept free, so that a negative index meets no memory.
CASES(row_times_width_32_bits) {
  constexpr size_t kRows = 70000, kWidth = 40000, kBytes = kRows * kWidth * sizeof(float);
  char* memory = static_cast<char*>(mmap(nullptr, 2 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory + kBytes, kBytes, PROT_READ | PROT_WRITE)) throw std::runtime_error("no room");
  float* const y = reinterpret_cast<float*>(memory + kBytes);
  simt::machine.first_block = kRows - 1;
  LAUNCH(row_times_width_32_bits, kRows, 1, 0, nullptr, y, int(kWidth));
}
