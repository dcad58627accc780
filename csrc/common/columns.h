// Parts that the rows are cut into where CUDA kernels sum columns, each with sums of its own: with the eight rows that a block of theirs takes at
// once, enough threads for an H100. The number is fixed, so that the same rows give the same bits on any device.
#pragma once

namespace megagpt {

constexpr int kColumnParts = 128;

}  // namespace megagpt
