// One thread for each row, column by column: every advantage needs the next one. Operations and their order are those of the reference.
#include "ops/gae.h"

#include "cpu/kernel.h"

namespace megagpt {

void run(MEGAGPT_CAPABILITY, const Gae& a) {
  parallel_rows(a.rows, a.width, [&](int64_t r) {
    const float *rewards = a.rewards + r * a.width, *values = a.values + r * a.width, *mask = a.mask + r * a.width;
    float *advantages = a.advantages + r * a.width, *returns = a.returns + r * a.width;
    float next_value = 0.f, next_advantage = 0.f;
    for (int64_t k = a.width - 1; k >= 0; --k) {
      const float delta = rewards[k] + a.gamma * next_value - values[k];
      advantages[k] = next_advantage = (delta + a.gamma_lambda * next_advantage) * mask[k];
      next_value = values[k] * mask[k];
      returns[k] = (next_advantage + values[k]) * mask[k];
    }
  });
}

}  // namespace megagpt
