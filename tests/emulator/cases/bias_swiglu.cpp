#include "cases.h"
#include "ops/bias_swiglu.h"

CASES(bias_swiglu) {
  using namespace megagpt;
  for (Dtype dtype : kDtypes) {
    for (int64_t width : {5, 40}) {
      for (bool biased : {true, false}) {
        const int64_t rows = 3, n = rows * width;
        const Buffer x(dtype, 2 * n), bias(dtype, 2 * width), y(dtype, n), grad(dtype, 2 * n), grad_bias(dtype, 2 * width);
        const Buffer partial = floats(kColumnParts * 2 * width);
        void* const optional = biased ? (void*)bias : nullptr;
        run(Cuda{nullptr}, BiasSwigluForward{x, optional, y, rows, width, dtype});
        run(Cuda{nullptr}, BiasSwigluBackward{y, x, optional, grad, biased ? (void*)grad_bias : nullptr, partial, rows, width, dtype});
      }
    }
  }
}
