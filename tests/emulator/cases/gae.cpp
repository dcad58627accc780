#include "cases.h"
#include "ops/gae.h"

CASES(gae) {
  using namespace megagpt;
  for (int64_t width : {1, 5, 40, 131, 136}) {
    for (int64_t rows : {1, 5}) {
      const Buffer rewards = floats(rows * width), values = floats(rows * width), mask = floats(rows * width);
      const Buffer advantages = floats(rows * width), returns = floats(rows * width);
      run(Cuda{nullptr}, Gae{rewards, values, mask, advantages, returns, rows, width, 1.f, 0.95f});
    }
  }
}
