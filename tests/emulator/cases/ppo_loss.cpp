#include "cases.h"
#include "ops/ppo_loss.h"

CASES(ppo_loss) {
  using namespace megagpt;
  for (int64_t count : {0, 1, 5, 40, 1100}) {
    const Buffer now = floats(count), before = floats(count), goal = floats(count), mask = floats(count), slope = floats(count);
    const Buffer policy_sums = floats(4), value_sums = floats(2), policy_partial = floats(kPpoParts * 4), value_partial = floats(kPpoParts * 2);
    run(Cuda{nullptr}, PpoPolicyLoss{now, before, goal, mask, policy_sums, slope, policy_partial, count, 0.8f, 1.2f});
    run(Cuda{nullptr}, PpoValueLoss{now, before, goal, mask, value_sums, slope, value_partial, count, 0.2f});
  }
}
