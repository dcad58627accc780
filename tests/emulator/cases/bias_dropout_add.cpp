#include "cases.h"
#include "ops/bias_dropout_add.h"

CASES(bias_dropout_add) {
  using namespace megagpt;
  const int64_t batch = 2, rows = 4;
  const std::unique_ptr<int64_t[]> row_ids(new int64_t[batch]{3, int64_t{1} << 40});
  for (Dtype dtype : kDtypes) {
    for (int64_t width : {5, 40}) {
      for (bool biased : {true, false}) {
        const int64_t n = rows * width;
        const Buffer x(dtype, n), bias(dtype, width), residual(dtype, n), y(dtype, n), grad(dtype, n), grad_bias(dtype, width);
        const Buffer partial = floats(kColumnParts * width);
        const DropoutMask mask{row_ids.get(), 77, uint64_t(2 * width), 1 << 23, 2.f, batch};
        run(Cuda{nullptr}, BiasDropoutAddForward{x, biased ? (void*)bias : nullptr, residual, y, mask, rows, width, dtype});
        run(Cuda{nullptr}, BiasDropoutAddBackward{y, grad, biased ? (void*)grad_bias : nullptr, partial, mask, rows, width, dtype});
        if (!biased) run(Cuda{nullptr}, BiasDropoutAddBackward{nullptr, grad, nullptr, nullptr, mask, rows, width, dtype});
      }
    }
  }
}
