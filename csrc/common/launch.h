// From tensors to kernels: the storage type, the rows of a tensor, and the choice of the code that runs (csrc/ops/*.cpp only).
#pragma once

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "common/checks.h"
#include "common/kernel.h"
#include "common/rows.h"

#ifdef MEGAGPT_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

// The library that the operators are registered in. The emulator of the tests builds the same sources into a library of its own.
#ifndef MEGAGPT_LIBRARY
#define MEGAGPT_LIBRARY megagpt
#endif
// torch's macros paste their arguments: these expand the library's name first.
#define MEGAGPT_FRAGMENT_OF(library, m) TORCH_LIBRARY_FRAGMENT(library, m)
#define MEGAGPT_IMPL_OF(library, key, m) TORCH_LIBRARY_IMPL(library, key, m)
// MEGAGPT_SCHEMAS(m) { m.def("…"); }             the operators of a file
// MEGAGPT_IMPLEMENTATIONS(implement)             void implement(torch::Library& m), for every device that there are kernels for
#define MEGAGPT_SCHEMAS(m) MEGAGPT_FRAGMENT_OF(MEGAGPT_LIBRARY, m)
#ifdef MEGAGPT_CUDA
#define MEGAGPT_IMPLEMENTATIONS(implement)                       \
  MEGAGPT_IMPL_OF(MEGAGPT_LIBRARY, CPU, m) { implement(m); }     \
  MEGAGPT_IMPL_OF(MEGAGPT_LIBRARY, CUDA, m) { implement(m); }
#else
#define MEGAGPT_IMPLEMENTATIONS(implement) MEGAGPT_IMPL_OF(MEGAGPT_LIBRARY, CPU, m) { implement(m); }
#endif
// The same for what GPUs have no kernel for.
#ifdef MEGAGPT_EMULATED
#define MEGAGPT_CPU_IMPLEMENTATIONS(implement)
#else
#define MEGAGPT_CPU_IMPLEMENTATIONS(implement) MEGAGPT_IMPL_OF(MEGAGPT_LIBRARY, CPU, m) { implement(m); }
#endif

namespace megagpt {

// Call after check_storage_dtype.
inline Dtype dtype_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? Dtype::f32 : tensor.scalar_type() == at::kHalf ? Dtype::f16 : Dtype::bf16;
}

// Call after check_dense_rows. Neighbouring dimensions that lie as one are taken as one.
inline Rows rows_of(const char* op, const char* name, const at::Tensor& tensor) {
  Rows rows{};
  for (int64_t dim = 0; dim < tensor.dim() - 1; ++dim) {
    const auto size = tensor.size(dim), stride = tensor.stride(dim);
    if (rows.dims > 0 && rows.strides[rows.dims - 1] == size * stride) {
      rows.sizes[rows.dims - 1] *= size;
      rows.strides[rows.dims - 1] = stride;
      continue;
    }
    TORCH_CHECK(rows.dims < Rows::kMaxDims, op, ": ", name, " has shape ", tensor.sizes(), " and strides ", tensor.strides(),
                "; at most ", Rows::kMaxDims, " leading dimensions may lie apart: make it contiguous");
    rows.sizes[rows.dims] = size;
    rows.strides[rows.dims++] = stride;
  }
  return rows;
}

// Memory of a tensor to read from or to write to. An optional one that is absent has none.
template <class T = void>
const T* data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T = void>
const T* data(const std::optional<at::Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}
template <class T = void>
T* out(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

// Float32 memory that only CUDA kernels need (and the emulated ones); nothing on a CPU.
inline at::Tensor scratch(at::IntArrayRef shape, const at::Tensor& like) {
#ifdef MEGAGPT_EMULATED
  const bool needed = true;
#else
  const bool needed = like.is_cuda();
#endif
  return at::empty(needed ? shape : at::IntArrayRef{0}, like.options().dtype(at::kFloat));
}

// Runs the version of a kernel for this CPU's instruction set. torch names that set, so ATEN_CPU_CAPABILITY=avx2 or =default holds for us too.
template <class Args>
void launch_on_cpu(const Args& args) {
#ifdef MEGAGPT_X86
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return run(Avx512{}, args);
  if (capability == "AVX2") return run(Avx2{}, args);
#endif
  run(Portable{}, args);
}

// Runs a kernel on the device that holds `tensor`.
template <class Args>
void launch(const Args& args, [[maybe_unused]] const at::Tensor& tensor) {
#ifdef MEGAGPT_EMULATED
  run(Cuda{nullptr}, args);
#else
#ifdef MEGAGPT_CUDA
  if (tensor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(tensor.device());
    return run(Cuda{c10::cuda::getCurrentCUDAStream().stream()}, args);
  }
#endif
  launch_on_cpu(args);
#endif
}

}  // namespace megagpt
