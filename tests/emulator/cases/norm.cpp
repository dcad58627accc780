#include "cases.h"
#include "ops/norm.h"

CASES(norm) {
  using namespace megagpt;
  for (Dtype dtype : kDtypes) {
    for (int64_t width : {5, 40}) {
      for (bool center : {true, false}) {
        const int64_t rows = 3, n = rows * width;  // one part for each row
        const Buffer x(dtype, n), residual(dtype, n), weight(dtype, width), bias(dtype, width), y(dtype, n), sum(dtype, n), grad(dtype, n);
        const Buffer mean = floats(rows), rstd = floats(rows), partial = floats(rows * 2 * width), grad_weight(dtype, width), grad_bias(dtype, width);
        run(Cuda{nullptr}, NormForward{x, residual, weight, center ? (void*)bias : nullptr, y, sum, mean, rstd, rows, width, 1e-5f, center, dtype});
        run(Cuda{nullptr}, NormBackward{y, residual, sum, weight, mean, rstd, grad, grad_weight, center ? (void*)grad_bias : nullptr, partial, rows,
                                        width, center, dtype});
      }
    }
  }
}
