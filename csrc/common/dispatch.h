// Runs a lambda with scalar_t set to the storage type. Accumulation is float for every one of them.
#pragma once

#include <ATen/Dispatch.h>

#define MEGAGPT_DISPATCH(dtype, op, ...)             \
  AT_DISPATCH_SWITCH(dtype, op,                      \
      AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__)      \
      AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__)       \
      AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))
