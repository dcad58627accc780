#include "cases.h"
#include "ops/token_logprob.h"

CASES(token_logprob) {
  using namespace megagpt;
  for (Dtype dtype : kDtypes) {
    for (int64_t width : {5, 40}) {  // of rows that begin at any address, and of aligned ones
      for (int64_t num_valid : {width - 2, width}) {
        const int64_t rows = 2, wide = width + 1;
        const Buffer logits(dtype, rows * width), grad(dtype, rows * width), apart(dtype, rows * wide - 1);
        const Buffer top = floats(rows), sum_exp = floats(rows), target = floats(rows), weighted = floats(rows), g = floats(rows);
        const int64_t ids[rows] = {width - 1, -7};
        const Rows dense{{rows}, {width}, 1}, padded{{rows}, {wide}, 1};
        run(Cuda{nullptr}, TokenLogprobForward{logits, dense, ids, top, sum_exp, target, nullptr, rows, num_valid, 0.5f, dtype});
        run(Cuda{nullptr}, TokenLogprobForward{apart, padded, ids, top, sum_exp, target, weighted, rows, num_valid, 0.5f, dtype});
        run(Cuda{nullptr}, TokenLogprobBackward{g, nullptr, nullptr, logits, dense, ids, top, sum_exp, nullptr, grad, dense, rows, width, num_valid,
                                                0.5f, dtype});
        run(Cuda{nullptr}, TokenLogprobBackward{g, g, g, apart, padded, ids, top, sum_exp, g, grad, dense, rows, width, num_valid, 0.5f, dtype});
      }
    }
  }
}
