// What a kernel is to the rest: a function that takes plain pointers and sizes. Nothing of torch here, so that nvcc, the emulator and the
// vector code compile in seconds.
//
// Each csrc/ops/<op>.h describes its calls as structs and declares what takes each of them:
//   run(Portable{}, args)   run(Avx2{}, args)   run(Avx512{}, args)     the same source cpu/<op>.cpp, compiled once for each
//   run(Cuda{stream}, args)                                             cuda/<op>.cu
#pragma once

#include <cstdint>

struct CUstream_st;  // what a cudaStream_t points to

namespace megagpt {

// Types that tensors are stored in. Arithmetic is float for all of them.
enum class Dtype : int32_t { f32, f16, bf16 };

// Where a kernel runs.
struct Portable {};
struct Avx2 {};
struct Avx512 {};
struct Cuda {
  CUstream_st* stream;
};

}  // namespace megagpt

#define MEGAGPT_KERNEL(Args)        \
  namespace megagpt {               \
  void run(Portable, const Args&);  \
  void run(Avx2, const Args&);      \
  void run(Avx512, const Args&);    \
  void run(Cuda, const Args&);      \
  }
