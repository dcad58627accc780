// One block for each row. It reads the row for the largest logit, for the sum of all weights, four times more for each truncation that is on (three
// histograms of a part of the keys' bits find where to cut, then the sum of what is kept), and at last a sixteenth of it for the token: 2 to 10
// times. All but the first come from the cache where the rows at work fit (two blocks on each of 132 multiprocessors, 100 KB of bf16 each: 26 MB of
// an H100's 50). Sums and histograms are of integers, so they are the same in any order, atomic additions included.
#include "ops/sample.h"

#include "cuda/reduce.cuh"
#include "cuda/row.cuh"

namespace megagpt {
namespace cuda {
namespace {

using namespace sampling;

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kOwnBins = kBins / kThreads;  // of each thread when a histogram is summed

template <class T>
struct Tokens {
  const T* x;
  int64_t width;
  float top, scale;

  __device__ __forceinline__ uint64_t weight(float logit) const { return weight_of(expf((logit - top) * scale)); }
};

// In shared memory.
struct Work {
  uint64_t *weight, *ties;  // [kWarps] of each warp's part of the row: beyond the cut, and at it
  uint32_t *low, *high;     // [kBins] the two halves of each sum
  uint64_t *sums;           // [kWarps]
  uint64_t *found;          // [2]
};

__device__ __forceinline__ uint64_t sum_of_warp(uint64_t x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// x of this lane and of all before it
__device__ __forceinline__ uint64_t sum_up_to_lane(uint64_t x) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, x, offset);
    if (lane >= offset) x += before;
  }
  return x;
}

// Each warp has a part of the row, in the order of the vocabulary.
__device__ __forceinline__ int64_t first_of_part(int64_t width, int warp) {
  const int64_t first = warp * ceil_div<int64_t>(width, kWarps);
  return first < width ? first : width;
}

template <class T>
__device__ __forceinline__ void sum_parts_of(const Tokens<T>& tokens, const Cut& cut, const Work& work) {
  const int warp = threadIdx.x / kWarp;
  const int64_t first = first_of_part(tokens.width, warp), count = first_of_part(tokens.width, warp + 1) - first;
  uint64_t weight = 0, ties = 0;
  for_each_pack<kLanes<T>>(tokens.x + first, count, threadIdx.x % kWarp, kWarp, [&]<int N>(int64_t, const Pack<T, N>& pack) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float logit = to_float(pack.v[i]);
      const uint32_t key = key_of(logit);
      if (key > cut.key) weight += tokens.weight(logit);
      if (key == cut.key) ++ties;
    }
  });
  weight = sum_of_warp(weight);
  ties = sum_of_warp(ties);
  __syncthreads();  // the last sums may still be read
  if (threadIdx.x % kWarp == 0) {
    work.weight[warp] = weight;
    work.ties[warp] = ties;
  }
  __syncthreads();
}

// What is kept of the parts [0, warps); `left` becomes the number of ties that later parts may keep.
__device__ __forceinline__ uint64_t kept_in(const Work& work, int warps, uint64_t weight_of_tie, uint64_t& left) {
  uint64_t sum = 0;
  for (int warp = 0; warp < warps; ++warp) {
    const uint64_t ties = work.ties[warp] < left ? work.ties[warp] : left;
    sum += work.weight[warp] + ties * weight_of_tie;
    left -= ties;
  }
  return sum;
}

__device__ __forceinline__ uint64_t bin_of(const Work& work, int bin) { return work.low[bin] | uint64_t{work.high[bin]} << 32; }

// Where the sum over falling keys, of weights or of ones, reaches `need`.
template <bool kByWeight, class T>
__device__ __forceinline__ Reached reach(const Tokens<T>& tokens, uint64_t need, const Work& work) {
  const int warp = threadIdx.x / kWarp;
  Reached r;
  uint32_t known = 0;  // bits
#pragma unroll 1
  for (int shift = kFirstShift; shift >= 0; shift -= kDigitBits) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) work.low[bin] = work.high[bin] = 0;
    __syncthreads();
    for_each_pack<kLanes<T>>(tokens.x, tokens.width, threadIdx.x, kThreads, [&]<int N>(int64_t, const Pack<T, N>& pack) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float logit = to_float(pack.v[i]);
        const uint32_t key = key_of(logit), bin = key >> shift & (kBins - 1);
        if ((key & known) != r.key) continue;
        const uint64_t weight = kByWeight ? tokens.weight(logit) : 1;
        const uint32_t low = static_cast<uint32_t>(weight);
        const uint32_t high = static_cast<uint32_t>(weight >> 32) + (atomicAdd(&work.low[bin], low) > ~low);  // with the carry
        if (kByWeight && high > 0) atomicAdd(&work.high[bin], high);
      }
    });
    __syncthreads();

    // Bins from the last on, kOwnBins for each thread.
    const int last = kBins - 1 - static_cast<int>(threadIdx.x) * kOwnBins;
    uint64_t own = 0;
    for (int i = 0; i < kOwnBins; ++i) own += bin_of(work, last - i);
    const uint64_t up_to = sum_up_to_lane(own);
    if (threadIdx.x % kWarp == kWarp - 1) work.sums[warp] = up_to;
    __syncthreads();
    uint64_t before = r.before + up_to - own;
    for (int w = 0; w < warp; ++w) before += work.sums[w];
    if (before < need && need <= before + own) {  // in one thread only
      int bin = last;
      while (before + bin_of(work, bin) < need) before += bin_of(work, bin--);
      work.found[0] = bin;
      work.found[1] = before;
    }
    __syncthreads();
    r.key |= static_cast<uint32_t>(work.found[0]) << shift;
    r.before = work.found[1];
    known = ~0u << shift;
  }
  return r;
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(Sample a) {
  SHARED(float, scratch, kWarps);
  SHARED(uint64_t, weight, kWarps);
  SHARED(uint64_t, ties, kWarps);
  SHARED(uint64_t, sums, kWarps);
  SHARED(uint64_t, found, 2);
  SHARED(uint32_t, low, kBins);
  SHARED(uint32_t, high, kBins);
  const Work work{weight, ties, low, high, sums, found};
  const int64_t row = blockIdx.x;
  Tokens<T> tokens{static_cast<const T*>(a.logits) + a.at.offset(row), a.width, -__builtin_huge_valf(), a.scale};
  for_each_pack<kLanes<T>>(tokens.x, a.width, threadIdx.x, kThreads, [&]<int N>(int64_t, const Pack<T, N>& pack) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float logit = to_float(pack.v[i]);
      tokens.top = fmaxf(tokens.top, logit == logit ? logit : __builtin_huge_valf());  // fmaxf alone would let NaN go
    }
  });
  tokens.top = reduce_block<Max, kThreads>(tokens.top, scratch);
  if (fabsf(tokens.top) == __builtin_huge_valf()) {
    if (threadIdx.x == 0) {
      a.tokens[row] = -1;
      a.logprobs[row] = __builtin_nanf("");
    }
    return;
  }

  Cut cut;
  uint64_t left = 0, weight_of_tie = 0;
  sum_parts_of(tokens, cut, work);
  const uint64_t total = kept_in(work, kWarps, 0, left);
  if (a.greedy) {
    cut = {key_of(tokens.top), 1};
    weight_of_tie = tokens.weight(tokens.top);
    sum_parts_of(tokens, cut, work);
  } else {
    if (a.top_k < a.width) {
      cut.key = reach<false>(tokens, a.top_k, work).key - 1;
      sum_parts_of(tokens, cut, work);
    }
    if (a.top_p < 1.) {
      const uint64_t need = needed(a.top_p, kept_in(work, kWarps, 0, left));
      const Reached r = reach<true>(tokens, need, work);
      weight_of_tie = tokens.weight(logit_of(r.key));
      cut = {r.key, (need - r.before + weight_of_tie - 1) / weight_of_tie};
      sum_parts_of(tokens, cut, work);
    }
  }

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  left = cut.ties;
  const uint64_t kept = kept_in(work, kWarps, weight_of_tie, left), passed = drawn(a.draws[row], kept);
  left = cut.ties;
  uint64_t sum = kept_in(work, warp, weight_of_tie, left);  // before this warp's part
  const uint64_t ties_here = ties[warp] < left ? ties[warp] : left;
  if (passed < sum || passed >= sum + weight[warp] + ties_here * weight_of_tie) return;
  // The token is in the part of this warp alone.
  const int64_t end = first_of_part(a.width, warp + 1);
  for (int64_t first = first_of_part(a.width, warp); first < end; first += kWarp) {
    const int64_t k = first + lane;
    const float logit = k < end ? to_float(load<1>(tokens.x + k).v[0]) : -__builtin_huge_valf();
    const uint32_t key = key_of(logit);
    const unsigned tied = __ballot_sync(kAllLanes, key == cut.key);
    const bool keep = key > cut.key || (key == cut.key && static_cast<uint64_t>(__popc(tied & ((1u << lane) - 1))) < left);
    const uint64_t up_to = sum + sum_up_to_lane(keep ? tokens.weight(logit) : 0);
    const unsigned past = __ballot_sync(kAllLanes, up_to > passed);
    if (past) {
      if (lane == __ffs(past) - 1) {
        a.tokens[row] = k;
        a.logprobs[row] = a.scale * (logit - tokens.top) - logf(static_cast<float>(total) * (1.f / static_cast<float>(uint64_t{1} << kFraction)));
      }
      return;
    }
    sum = __shfl_sync(kAllLanes, up_to, kWarp - 1);
    const uint64_t number = __popc(tied);
    left -= number < left ? number : left;
  }
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const Sample& a) {
  using namespace cuda;
  if (a.rows == 0) return;
  dispatch(a.dtype, [&]<class T>(T*) { LAUNCH(sample_kernel<T>, grid(a.rows), kThreads, 0, on.stream, a); });
}

}  // namespace megagpt
