#include "cases.h"
#include "ops/adamw.h"

CASES(adamw) {
  using namespace megagpt;
  for (Dtype grad_dtype : kDtypes) {
    for (Dtype copy_dtype : kDtypes) {
      const auto call = [&](const AdamWTensor* tensors, int64_t num_tensors, const float* grad_scale, const float* overflow) {
        run(Cuda{nullptr}, AdamW{tensors, num_tensors, grad_scale, overflow, 0.999f, 0.1f, 0.95f, 0.05f, 0.5f, 1e-8f, 1e-3f, grad_dtype, copy_dtype});
      };
      const bool copies = copy_dtype != Dtype::f32;
      const Buffer scale = floats(1), overflow = floats(1);
      for (int64_t size : {5, 40, 2050}) {
        const Buffer param = floats(size), grad(grad_dtype, size), exp_avg = floats(size), exp_avg_sq = floats(size), copy(copy_dtype, size);
        const AdamWTensor whole{param, grad, exp_avg, exp_avg_sq, copies ? (void*)copy : nullptr, size};
        // The second has the last elements of the first, at an odd address; the launches come one after another.
        const AdamWTensor odd{(float*)param + 1, (char*)grad + bytes_of(grad_dtype), (float*)exp_avg + 1, (float*)exp_avg_sq + 1,
                              copies ? (char*)copy + bytes_of(copy_dtype) : nullptr, size - 1};
        call(&whole, 1, nullptr, nullptr);
        call(&odd, 1, scale, overflow);
      }
      const int64_t many = 66;
      const Buffer all = floats(3 * many), grads(grad_dtype, many), copied(copy_dtype, many);
      AdamWTensor tensors[many];
      for (int64_t i = 0; i < many; ++i) {
        tensors[i] = {(float*)all + i, (char*)grads + i * bytes_of(grad_dtype), (float*)all + many + i, (float*)all + 2 * many + i,
                      copies ? (char*)copied + i * bytes_of(copy_dtype) : nullptr, 1};
      }
      call(tensors, 2, nullptr, nullptr);
      if (grad_dtype == Dtype::f32 && !copies) call(tensors, many, nullptr, nullptr);
    }
  }
}
