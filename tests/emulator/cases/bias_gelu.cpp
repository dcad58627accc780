#include "cases.h"
#include "ops/bias_gelu.h"

CASES(bias_gelu) {
  using namespace megagpt;
  for (Dtype dtype : kDtypes) {
    for (int64_t width : {5, 40}) {
      for (bool tanh : {true, false}) {
        const int64_t rows = 3, n = rows * width;
        const Buffer x(dtype, n), bias(dtype, width), y(dtype, n), grad(dtype, n), grad_bias(dtype, width), partial = floats(kColumnParts * width);
        void* const optional = tanh ? (void*)bias : nullptr;
        run(Cuda{nullptr}, BiasGeluForward{x, optional, y, rows, width, tanh, dtype});
        run(Cuda{nullptr}, BiasGeluBackward{y, x, optional, grad, optional ? (void*)grad_bias : nullptr, partial, rows, width, tanh, dtype});
      }
    }
  }
}
