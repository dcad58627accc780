// Correct programs, for tests/kernels/test_emulator.py: right results and silence under every build and schedule.
#include "../cases/cases.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

using namespace megagpt::cuda;

namespace {

void expect(const char* what, int64_t place, double seen, double wanted) {
  if (seen == wanted) return;
  throw std::runtime_error(std::string(what) + "[" + std::to_string(place) + "] is " + std::to_string(seen) + ", expected " + std::to_string(wanted));
}

// ---------------------------------------------------------------- shuffles

constexpr int kShuffles = 8;

__global__ void shuffles(int* y) {
  const int lane = threadIdx.x % kWarp, x = 100 * (threadIdx.x / kWarp) + lane;
  int* const mine = y + threadIdx.x * kShuffles;
  mine[0] = __shfl_sync(kAllLanes, x, 7);
  mine[1] = __shfl_sync(kAllLanes, x, lane + 1, 8);  // of the lane's group of eight
  mine[2] = __shfl_xor_sync(kAllLanes, x, 5);
  mine[3] = __shfl_up_sync(kAllLanes, x, 3);
  mine[4] = __shfl_down_sync(kAllLanes, x, 3);
  mine[5] = __shfl_up_sync(kAllLanes, x, 1, 4);
  // Two halves of a warp, each at a call of its own.
  if (lane < 16) {
    mine[6] = __shfl_xor_sync(0x0000ffffu, x, 1);
  } else {
    mine[6] = __shfl_xor_sync(0xffff0000u, x, 2);
  }
  // Every width of value up to eight bytes.
  mine[7] = static_cast<int>(__shfl_sync(kAllLanes, 1e9 * x, 2) / 1e9) + __shfl_sync(kAllLanes, static_cast<signed char>(lane), 4);
}

__global__ void votes(unsigned* y) {
  const unsigned lane = threadIdx.x % kWarp;
  unsigned* const mine = y + threadIdx.x * 5;
  mine[0] = __ballot_sync(kAllLanes, lane % 3 == 0);
  mine[1] = __any_sync(kAllLanes, lane == 31) != 0;
  mine[2] = __any_sync(kAllLanes, lane == 32) != 0;
  mine[3] = __all_sync(kAllLanes, lane < 32) != 0;
  mine[4] = __all_sync(kAllLanes, lane < 31) != 0;
}

// ---------------------------------------------------------------- blocks, shared memory, atomics

// y = x transposed, in tiles of 8 x 4 x 2 threads through dynamic shared memory.
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  DYNAMIC_SHARED(float, tile);
  const int k = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x, side = blockDim.x;
  const int row = blockIdx.y * side + k / side, column = blockIdx.x * side + k % side;
  if (row < rows && column < columns) tile[k] = x[row * columns + column];
  __syncthreads();
  const int to_row = blockIdx.x * side + k / side, to_column = blockIdx.y * side + k % side;
  if (to_row < columns && to_column < rows) y[to_row * rows + to_column] = tile[k % side * side + k / side];
}

__global__ void atomics(int* count, float* sum, unsigned* largest) {
  SHARED(int, block_count, 1);
  if (threadIdx.x == 0) block_count[0] = 0;
  __syncthreads();
  atomicAdd(block_count, 1);
  atomicAdd(sum, 0.5f);
  atomicMax(largest, blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(count, block_count[0]);
}

// A sum over all warps, whose scratch is used again at once; a warp that is not whole; threads that end after the last barrier.
__global__ void sums(float* y) {
  SHARED(float, scratch, 3);
  const float first = reduce_block<Sum, 96>(float(threadIdx.x), scratch), second = reduce_block<Max, 96>(first + threadIdx.x, scratch);
  if (threadIdx.x > 0) return;
  y[blockIdx.x] = second;
}

__global__ void ragged_warp(int* y) {
  const unsigned mask = threadIdx.x < 32 ? kAllLanes : 0xffu;
  y[threadIdx.x] = __shfl_xor_sync(mask, int(threadIdx.x), 1);
  __syncwarp(mask);
}

template <class T>
__global__ void copy(const T* x, T* y) {
  const int k = threadIdx.x * kLanes<T>;
  store<kLanes<T>>(y + k, load<kLanes<T>>(x + k));
}

}  // namespace

CASES(correct_shuffles) {
  const Buffer buffer = floats(64 * kShuffles);
  int* const y = static_cast<int*>(static_cast<void*>(buffer));
  LAUNCH(shuffles, 1, 64, 0, nullptr, y);
  for (int thread = 0; thread < 64; ++thread) {
    const int lane = thread % 32, base = 100 * (thread / 32);
    const int expected[kShuffles] = {base + 7,
                                     base + lane / 8 * 8 + (lane + 1) % 8,
                                     base + (lane ^ 5),
                                     base + (lane < 3 ? lane : lane - 3),
                                     base + (lane + 3 > 31 ? lane : lane + 3),
                                     base + (lane % 4 == 0 ? lane : lane - 1),
                                     base + (lane ^ (lane < 16 ? 1 : 2)),
                                     base + 2 + 4};
    for (int k = 0; k < kShuffles; ++k) expect("shuffle", thread * kShuffles + k, y[thread * kShuffles + k], expected[k]);
  }
}

CASES(correct_votes) {
  const Buffer buffer = floats(64 * 5);
  unsigned* const y = static_cast<unsigned*>(static_cast<void*>(buffer));
  LAUNCH(votes, 1, 64, 0, nullptr, y);
  for (int thread = 0; thread < 64; ++thread) {
    const unsigned expected[] = {0x49249249u, 1, 0, 1, 0};
    for (int k = 0; k < 5; ++k) expect("vote", thread * 5 + k, y[thread * 5 + k], expected[k]);
  }
}

CASES(correct_blocks) {
  constexpr int kRows = 11, kColumns = 21, kSide = 8;
  const Buffer x = floats(kRows * kColumns), y = floats(kRows * kColumns);
  const dim3 grid(ceil_div(kColumns, kSide), ceil_div(kRows, kSide)), block(kSide, kSide / 2, 2);
  LAUNCH(transpose, grid, block, kSide * kSide * sizeof(float), nullptr, x, y, kRows, kColumns);
  const float *from = x, *to = y;
  for (int i = 0; i < kRows * kColumns; ++i) expect("transpose", i, to[i % kColumns * kRows + i / kColumns], from[i]);
}

CASES(correct_atomics) {
  const Buffer sum = floats(1);
  int count = 0;
  unsigned largest = 5;
  static_cast<float*>(sum)[0] = 0;
  LAUNCH(atomics, 3, 40, 0, nullptr, &count, sum, &largest);
  expect("count", 0, count, 120);
  expect("sum", 0, static_cast<float*>(sum)[0], 60);
  expect("largest", 0, largest, 119);
}

CASES(correct_sums) {
  const Buffer y = floats(2);
  LAUNCH(sums, 2, 96, 0, nullptr, y);
  for (int block = 0; block < 2; ++block) expect("sum", block, static_cast<float*>(y)[block], 95 * 96 / 2 + 95);
}

CASES(correct_ragged_warp) {
  int y[40];
  LAUNCH(ragged_warp, 1, 40, 0, nullptr, y);
  for (int thread = 0; thread < 40; ++thread) expect("lane", thread, y[thread], thread ^ 1);
}

CASES(correct_wide_access) {
  const Buffer x(Dtype::bf16, 8 * 8), y(Dtype::bf16, 8 * 8);
  const auto* from = static_cast<const __nv_bfloat16*>(static_cast<void*>(x));
  auto* to = static_cast<__nv_bfloat16*>(static_cast<void*>(y));
  simt::machine.counters = {};
  LAUNCH((copy<__nv_bfloat16>), 1, 8, 0, nullptr, from, to);
  for (int i = 0; i < 64; ++i) expect("copy", i, to_float(to[i]), to_float(from[i]));
  expect("bytes loaded", 0, simt::machine.counters.loaded, 128);
  expect("bytes stored", 0, simt::machine.counters.stored, 128);
}
