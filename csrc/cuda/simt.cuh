// The few words that differ between nvcc and the tests' emulator (tests/emulator/), which runs this very source on a CPU: shared memory, launches.
// Kernels hold no PTX, no code for one architecture only, and check every launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace megagpt::cuda {

// A block has 48 KiB of shared memory unless it asks for more, and what a kernel declares by itself counts: so a launch asks early.
constexpr bool asks_for_shared(size_t dynamic_bytes) { return dynamic_bytes > 40 * 1024; }

}  // namespace megagpt::cuda

#ifdef MEGAGPT_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>

// T name[count] in shared memory; count is a constant.
#define SHARED(T, name, count) __shared__ T name[count]
// T* name: the launch's dynamic shared memory, 16-byte aligned.
#define DYNAMIC_SHARED(T, name)                                \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  T* name = reinterpret_cast<T*>(name##_raw)
// LAUNCH((kernel<T, true>), grid, block, bytes of dynamic shared memory, stream, arguments...)
#define LAUNCH(kernel, grid, block, bytes, stream, ...)                                                       \
  do {                                                                                                        \
    ::megagpt::cuda::allow_shared(kernel, bytes);                                                             \
    kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__);                                                      \
    ::megagpt::cuda::check(cudaGetLastError(), #kernel);                                                      \
  } while (false)

namespace megagpt::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("megagpt: ") + what + ": " + cudaGetErrorString(error));
}

template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  if (asks_for_shared(bytes)) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory");
}

}  // namespace megagpt::cuda
#endif

namespace megagpt::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// Dynamic shared memory that a block may have on sm_80 (163 KiB) and sm_90 (227 KiB) alike.
constexpr size_t kMaxShared = 160 * 1024;

// One block for each of so many rows.
inline unsigned grid(int64_t rows) {
  if (rows > 0x7fffffff) throw std::runtime_error("megagpt: " + std::to_string(rows) + " rows; a launch takes at most 2147483647");
  return static_cast<unsigned>(rows);
}

template <class I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

}  // namespace megagpt::cuda
