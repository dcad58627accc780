#include "cases.h"
#include "ops/sample.h"

CASES(sample) {
  using namespace megagpt;
  const int64_t rows = 2;
  const double draws[rows] = {0.3, 0.9};
  int64_t tokens[rows];
  const Buffer logprobs = floats(rows);
  for (Dtype dtype : kDtypes) {
    for (int64_t width : {5, 40}) {
      const Buffer logits(dtype, rows * (width + 1) - 1);
      const Rows at{{rows}, {width + 1}, 1};
      for (bool greedy : {true, false}) {
        run(Cuda{nullptr}, Sample{logits, at, draws, tokens, logprobs, rows, width, 0.5f, 4, 0.7, greedy, dtype});
      }
    }
  }
}
