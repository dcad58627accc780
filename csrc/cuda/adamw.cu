// One launch for up to 64 tensors of any sizes, whose addresses travel in the kernel's arguments: nothing is copied to the device first. A block
// takes kChunk neighbouring elements of one tensor, which it finds by the number of chunks before each tensor.
// Bytes: 28 an element in float32 (param and both moments read and written, grad read), each moved once and 16 at a time where the tensor's
// addresses allow; fewer for a 16-bit grad, 2 more for a copy. No sums, so the bits depend on nothing.
#include "ops/adamw.h"

#include "cuda/vec.cuh"

namespace megagpt {
namespace cuda {
namespace {

constexpr int kThreads = 256, kChunk = 2048, kBatch = 64;

struct Batch {
  AdamWTensor tensors[kBatch];
  int64_t first_chunk[kBatch];  // of each tensor; behind the last tensor: the number of chunks
  bool wide[kBatch];
  AdamW call;
};
static_assert(sizeof(Batch) <= 4096, "the limit for arguments");

// M neighbours, 16 bytes at a time unless M is 1.
template <int M, class T>
__device__ __forceinline__ void load_floats(const T* p, float (&x)[M]) {
  constexpr int N = M == 1 ? 1 : kLanes<T>;
#pragma unroll
  for (int j = 0; j < M; j += N) {
    const auto pack = load<N>(p + j);
#pragma unroll
    for (int i = 0; i < N; ++i) x[j + i] = to_float(pack.v[i]);
  }
}

template <int M, class T>
__device__ __forceinline__ void store_floats(T* p, const float (&x)[M]) {
  constexpr int N = M == 1 ? 1 : kLanes<T>;
#pragma unroll
  for (int j = 0; j < M; j += N) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(x[j + i]);
    store<N>(p + j, pack);
  }
}

template <class G, class C, int M>
__device__ __forceinline__ void update(const AdamW& a, const AdamWTensor& t, float scale, int64_t k) {
  float p[M], g[M], m[M], v[M];
  load_floats(t.param + k, p);
  load_floats(static_cast<const G*>(t.grad) + k, g);
  load_floats(t.exp_avg + k, m);
  load_floats(t.exp_avg_sq + k, v);
  const bool near_grad = a.one_minus_beta1 >= 0.5f;  // exp_avg is then counted from the gradient, as in torch.lerp
  const float share = near_grad ? a.one_minus_beta1 - 1.f : a.one_minus_beta1;
#pragma unroll
  for (int i = 0; i < M; ++i) {
    g[i] *= scale;
    m[i] = fmaf(share, g[i] - m[i], near_grad ? g[i] : m[i]);
    v[i] = fmaf(a.one_minus_beta2 * g[i], g[i], v[i] * a.beta2);
    p[i] = p[i] * a.decay + -a.step_size * m[i] / (sqrtf(v[i]) / a.correction + a.eps);
  }
  store_floats(t.param + k, p);
  store_floats(t.exp_avg + k, m);
  store_floats(t.exp_avg_sq + k, v);
  if constexpr (!std::is_same_v<C, float>) store_floats(static_cast<C*>(t.copy) + k, p);
}

template <class G, class C>
__global__ void __launch_bounds__(kThreads, 4) adamw_kernel(const Batch batch) {
  constexpr int M = kLanes<G> > kLanes<C> ? kLanes<G> : kLanes<C>;
  const AdamW& a = batch.call;
  if (a.overflow && *a.overflow != 0.f) return;
  const float scale = a.grad_scale ? *a.grad_scale : 1.f;
  int i = 0;
#pragma unroll
  for (int step = kBatch / 2; step > 0; step /= 2) {
    if (batch.first_chunk[i + step] <= blockIdx.x) i += step;
  }
  const AdamWTensor& t = batch.tensors[i];
  const int64_t begin = (blockIdx.x - batch.first_chunk[i]) * kChunk, end = begin + kChunk < t.size ? begin + kChunk : t.size;
  const int64_t whole = batch.wide[i] ? end - (end - begin) % M : begin;
  for (int64_t k = begin + threadIdx.x * M; k < whole; k += kThreads * M) update<G, C, M>(a, t, scale, k);
#pragma unroll 1
  for (int64_t k = whole + threadIdx.x; k < end; k += kThreads) update<G, C, 1>(a, t, scale, k);
}

template <class G, class C>
void update(const AdamW& a, CUstream_st* stream) {
  Batch batch{};
  batch.call = a;
  for (int64_t next = 0; next < a.num_tensors;) {
    int64_t num_chunks = 0;
    for (int i = 0; i < kBatch; ++i) {
      batch.first_chunk[i] = num_chunks;
      if (next == a.num_tensors) continue;
      const AdamWTensor& t = batch.tensors[i] = a.tensors[next++];
      batch.wide[i] = aligned<float>(0, t.param, t.exp_avg, t.exp_avg_sq) && aligned<G>(0, static_cast<const G*>(t.grad), static_cast<C*>(t.copy));
      num_chunks += ceil_div<int64_t>(t.size, kChunk);
    }
    LAUNCH((adamw_kernel<G, C>), grid(num_chunks), kThreads, 0, stream, batch);
  }
}

}  // namespace
}  // namespace cuda

void run(Cuda on, const AdamW& a) {
  cuda::dispatch(a.grad_dtype, [&]<class G>(G*) {
    cuda::dispatch(a.copy_dtype, [&]<class C>(C*) { cuda::update<G, C>(a, on.stream); });
  });
}

}  // namespace megagpt
