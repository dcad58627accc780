#include "cases.h"
#include "ops/adamw.h"

CASES(adamw) {
  using namespace megagpt;
  for (Dtype grad_dtype : kDtypes) {
    for (Dtype copy_dtype : kDtypes) {
      const auto call = [&](const AdamWTensor* tensors, int64_t num_tensors, const float* grad_scale, const float* overflow) {
        run(Cuda{nullptr}, AdamW{tensors, num_tensors, grad_scale, overflow, 0.999f, 0.1f, 0.95f, 0.05f, 0.5f, 1e-8f, 1e-3f, grad_dtype, copy_dtype});
      };
      struct Example {
        Buffer param, exp_avg, exp_avg_sq, grad, copy;
        Dtype grad_dtype, copy_dtype;
        Example(int64_t size, Dtype grad_dtype, Dtype copy_dtype)
            : param(floats(size)), exp_avg(floats(size)), exp_avg_sq(floats(size)), grad(grad_dtype, size), copy(copy_dtype, size),
              grad_dtype(grad_dtype), copy_dtype(copy_dtype) {}
        // `size` neighbours from `first` on.
        AdamWTensor slice(int64_t first, int64_t size) const {
          const auto at = [&](void* memory, Dtype dtype) { return static_cast<char*>(memory) + first * bytes_of(dtype); };
          return {static_cast<float*>(param) + first, at(grad, grad_dtype), static_cast<float*>(exp_avg) + first,
                  static_cast<float*>(exp_avg_sq) + first,
                  copy_dtype == Dtype::f32 ? nullptr : at(copy, copy_dtype), size};
        }
      };
      for (int64_t size : {5, 40, 2050}) {
        if (size > 2048 && grad_dtype != copy_dtype) continue;  // several blocks: slow under ThreadSanitizer, and the same for all types
        const Example example(size, grad_dtype, copy_dtype);
        const Buffer scale = floats(1), overflow = floats(1);
        const AdamWTensor whole = example.slice(0, size), odd = example.slice(1, size - 1);
        call(&whole, 1, nullptr, nullptr);
        call(&odd, 1, scale, nullptr);
        call(&odd, 1, scale, overflow);
      }
      if (grad_dtype != Dtype::f32 || copy_dtype != Dtype::f32) continue;
      constexpr int64_t kMany = 66;  // more than one launch takes
      const Example example(kMany, grad_dtype, copy_dtype);
      AdamWTensor tensors[kMany];
      for (int64_t i = 0; i < kMany; ++i) tensors[i] = example.slice(i, 1);
      call(tensors, kMany, nullptr, nullptr);
    }
  }
}
