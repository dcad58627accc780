// Calls of the kernels for the sanitizers: small, with every buffer exactly as long as it should be. Each cases/<op>.cpp adds its own:
//
//   CASES(norm) {
//     for (Dtype dtype : kDtypes) run(Cuda{nullptr}, NormForward{...});
//   }
//
// Values do not matter here (tests/kernels/ checks them), addresses and races do. ThreadSanitizer is slow: blocks of few rows, rows of few columns,
// but ragged and whole ones, and every path of the launchers that small shapes can reach.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "common/kernel.h"

namespace cases {

using megagpt::Cuda;
using megagpt::Dtype;

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16};

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Memory of exactly this size, aligned to 16 bytes, filled with small numbers of the type.
class Buffer {
 public:
  Buffer(Dtype dtype, int64_t count) : memory_(static_cast<char*>(malloc(count * bytes_of(dtype))), free) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = 0.25f * float((i * 7 + 3) % 11) - 1.f;  // eight bits are enough for it
      const uint32_t bits = __builtin_bit_cast(uint32_t, value);
      if (dtype == Dtype::f32) reinterpret_cast<float*>(memory_.get())[i] = value;
      if (dtype == Dtype::bf16) reinterpret_cast<uint16_t*>(memory_.get())[i] = uint16_t(bits >> 16);
    }
  }
  operator void*() const { return memory_.get(); }
  operator float*() const { return reinterpret_cast<float*>(memory_.get()); }

 private:
  std::unique_ptr<char, decltype(&free)> memory_;
};

inline Buffer floats(int64_t count) { return {Dtype::f32, count}; }

// op -> its calls
inline std::map<std::string, std::function<void()>>& registry() {
  static std::map<std::string, std::function<void()>> cases;
  return cases;
}

}  // namespace cases

#define CASES(op)                                                                        \
  namespace cases {                                                                      \
  static void op##_cases();                                                              \
  [[maybe_unused]] static const bool op##_added = registry().emplace(#op, op##_cases).second; \
  }                                                                                      \
  static void cases::op##_cases()
