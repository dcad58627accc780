// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four numbers of 32 bits from a counter of 128 and a key of
// 64. Nothing but integers, so that every device and the reference in Python draw the same.
#pragma once

#include "common/rows.h"

namespace megagpt {
namespace {  // a copy for each file: those of csrc/cpu are compiled for different instruction sets

struct PhiloxKey {
  uint32_t low, high;
  MEGAGPT_BOTH constexpr explicit PhiloxKey(uint64_t key) : low(static_cast<uint32_t>(key)), high(static_cast<uint32_t>(key >> 32)) {}
  MEGAGPT_BOTH constexpr void next_round() {
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
};

constexpr int kPhiloxRounds = 10;

MEGAGPT_BOTH constexpr void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, PhiloxKey key) {
  const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
  c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key.low;
  c1 = static_cast<uint32_t>(b);
  c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key.high;
  c3 = static_cast<uint32_t>(a);
}

struct PhiloxWords {
  uint32_t v[4];
};

MEGAGPT_BOTH constexpr PhiloxWords philox(uint64_t counter_low, uint64_t counter_high, uint64_t key) {
  PhiloxWords c{{static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32), static_cast<uint32_t>(counter_high),
                 static_cast<uint32_t>(counter_high >> 32)}};
  PhiloxKey round_key(key);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c.v[0], c.v[1], c.v[2], c.v[3], round_key);
    round_key.next_round();
  }
  return c;
}

}  // namespace
}  // namespace megagpt
