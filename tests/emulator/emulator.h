// Runs CUDA kernels on one CPU thread: csrc/cuda/*.cu compiled by g++ with -DMEGAGPT_EMULATED takes this header in place of the CUDA runtime
// (README.md in this folder).
//
// Blocks run one after another, each as one fiber for each thread. A thread runs until it waits (barrier, shuffle, vote) or ends; the schedule
// says in which order. What a GPU leaves undefined is an error here that names kernel, source line, block and thread: barriers that not all
// threads reach or that they reach on different lines, warp operations with lanes missing, a deadlock, launches beyond the limits. Shared
// memory holds NaN until it is written, has its exact size for AddressSanitizer, and is new for every block; for ThreadSanitizer every thread
// of a block is a thread of its own, and only barriers and warp operations order them.
#pragma once

#include <cxxabi.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <new>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <typeinfo>

#include "fiber.h"

#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __restrict__
#undef __shared__
#define __device__
#define __forceinline__ inline
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __restrict__

namespace simt {

using Location = std::source_location;

// Limits of sm_80 and sm_90 alike.
constexpr unsigned kMaxThreads = 1024, kWarpSize = 32, kMaxWarps = kMaxThreads / kWarpSize;
constexpr size_t kMaxSharedBytes = 163 * 1024;
// What a launch has that does not ask for more.
constexpr size_t kUnaskedSharedBytes = 48 * 1024;

// For the race detector, which takes some 8,000 fibers.
constexpr size_t kMaxFibers = 4096, kArenaBytes = 2 * kMaxSharedBytes;

enum class Status { kReady, kAtBarrier, kInWarpOp, kDone };
enum class WarpOp { kSync, kIndex, kXor, kUp, kDown, kBallot };

struct Thread : Fiber {
  uint3 index{};
  unsigned number = 0, lane = 0, warp = 0;
  Status status = Status::kDone;
  Location at;
  // Of the warp operation that it waits in.
  uint64_t value = 0, result = 0;
  int argument = 0, width = kWarpSize;
};

// What the race detector is told at a barrier or warp operation. Two take turns: a thread that is through one and arrives at the next must not
// order itself before those that have yet to leave the first.
struct Event {
  int points[2] = {};
  unsigned turn = 0;
  SIMT_INTERNAL void* point() { return &points[turn % 2]; }
};

// A warp operation that some lanes of its mask have arrived at.
struct WarpCall {
  unsigned mask = 0, arrived = 0;  // lanes
  WarpOp op{};
  Location at;
  Event event;
};

struct Warp {
  unsigned alive = 0;         // lanes that have not ended
  unsigned awaited = 0;       // lanes in the masks of unfinished calls
  WarpCall calls[kWarpSize];  // by the mask's lowest lane, since parts of a warp may call side by side
};

// Where the threads of a block meet. New memory for every block: the race detector goes by addresses, and blocks never meet.
struct Meetings {
  Event barrier;
  Warp warps[kMaxWarps];
};

struct SharedArray {
  void** slot;  // the variable in the kernel that points to it
  void* memory;
};
constexpr unsigned kMaxSharedArrays = 16;

// Bytes moved by load<N> and store<N> of csrc/cuda/vec.cuh, and how many launches there were.
struct Counters {
  uint64_t loaded = 0, stored = 0, launches = 0;
};

// The largest launches of a kernel so far.
struct Geometry {
  uint64_t threads = 0, dynamic_bytes = 0;
};

struct Machine {
  // How threads and blocks take turns: 0 ascending, 1 descending, 2 and more: another random order in every round.
  unsigned schedule = 0;
  // Only these blocks run, for tensors that are too large for all.
  uint64_t first_block = 0, last_block = ~uint64_t{0};
  Counters counters;
  std::map<std::string, Geometry> geometry;

  Launcher launcher;
  std::vector<Thread> threads;
  Meetings* meetings = nullptr;
  Thread* current = nullptr;
  dim3 block_size, grid_size;
  uint3 block{};
  unsigned num_threads = 0, num_waiting = 0, num_done = 0;
  Location barrier_at;
  int begin_event = 0, end_event = 0;
  std::string kernel;
  std::function<void()> body;
  bool failed = false;
  std::string error;
  // Of the current block.
  SharedArray arrays[kMaxSharedArrays];
  unsigned num_arrays = 0;
  size_t shared_bytes = 0;
  bool asked_for_shared = false;
  void* dynamic = nullptr;
  // Only for the race detector: shared memory, and how many fibers this launch has had.
  char* arena = nullptr;
  size_t arena_used = 0, num_fibers = 0;
};
inline Machine machine;

inline SIMT_INTERNAL void count_loaded(size_t bytes) { machine.counters.loaded += bytes; }
inline SIMT_INTERNAL void count_stored(size_t bytes) { machine.counters.stored += bytes; }

// Unwinds a thread whose kernel has failed.
struct Aborted {};

// "block (0,0,0) thread 5" of what runs now.
inline SIMT_INTERNAL std::string who() {
  const auto& b = machine.block;
  return "block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) + ") thread " +
         (machine.current ? std::to_string(machine.current->number) : "-");
}

inline SIMT_INTERNAL std::string place(const Location& at) { return std::string(at.file_name()) + ":" + std::to_string(at.line()); }

inline SIMT_INTERNAL void note_error(const std::string& what, const Location& at) {
  if (machine.failed) return;  // the first one counts
  machine.failed = true;
  machine.error = machine.kernel + ": " + what + " at " + place(at) + ", " + who();
}

[[noreturn]] inline SIMT_INTERNAL void fail(const std::string& what, const Location& at) {
  note_error(what, at);
  throw Aborted{};
}

inline SIMT_INTERNAL bool same_place(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() && strcmp(a.file_name(), b.file_name()) == 0;
}

// ---------------------------------------------------------------- waiting

inline SIMT_INTERNAL void wait() {
  leave(machine.launcher, *machine.current, false);
  if (machine.failed) throw Aborted{};
}

inline SIMT_INTERNAL void release_barrier() {
  machine.num_waiting = 0;
  ++machine.meetings->barrier.turn;
  for (auto& thread : machine.threads) {
    if (thread.status == Status::kAtBarrier) thread.status = Status::kReady;
  }
}

inline SIMT_INTERNAL void sync_threads(Location at = Location::current()) {
  auto& m = machine;
  m.current->status = Status::kAtBarrier;
  m.current->at = at;
  void* const event = m.meetings->barrier.point();
  happens_before(event);
  if (m.num_waiting++ == 0) {
    m.barrier_at = at;
  } else if (!same_place(m.barrier_at, at)) {
    fail("divergent __syncthreads (another thread waits at line " + std::to_string(m.barrier_at.line()) + ")", at);
  }
  if (m.num_done > 0) fail("__syncthreads after " + std::to_string(m.num_done) + " thread(s) of the block have ended", at);
  if (m.num_waiting == m.num_threads) release_barrier();
  wait();
  happens_after(event);
}

// The lane whose value `thread` receives.
inline SIMT_INTERNAL int source_lane(const Thread& thread, WarpOp op) {
  const int lane = static_cast<int>(thread.lane), width = thread.width, base = lane & ~(width - 1), end = base + width;
  int source = lane;
  if (op == WarpOp::kIndex) source = base + (thread.argument & (width - 1));
  if (op == WarpOp::kXor) source = lane ^ thread.argument;
  if (op == WarpOp::kUp) source = lane - thread.argument;
  if (op == WarpOp::kDown) source = lane + thread.argument;
  return source < base || source >= end ? lane : source;
}

inline SIMT_INTERNAL void finish_warp_call(Warp& warp, WarpCall& call, Thread* lanes) {
  warp.awaited &= ~call.mask;
  call.arrived = 0;
  ++call.event.turn;
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (call.mask >> lane & 1) ballot |= unsigned(lanes[lane].value != 0) << lane;
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!(call.mask >> lane & 1)) continue;
    const int source = source_lane(lanes[lane], call.op);
    if (!(call.mask >> source & 1)) fail("shuffle reads lane " + std::to_string(source) + ", which is not in the mask", call.at);
    lanes[lane].result = call.op == WarpOp::kBallot ? ballot : lanes[source].value;
    lanes[lane].status = Status::kReady;
  }
}

inline SIMT_INTERNAL uint64_t warp_op(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Location at) {
  Thread& thread = *machine.current;
  Warp& warp = machine.meetings->warps[thread.warp];
  thread.status = Status::kInWarpOp;
  thread.at = at;
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  if (!(mask >> thread.lane & 1)) fail("warp operation: the lane is not in its own mask", at);
  if (mask & ~warp.alive) fail("warp operation: the mask names a lane that has ended or does not exist", at);
  WarpCall& call = warp.calls[__builtin_ctz(mask)];
  if (!(warp.awaited & mask)) {
    warp.awaited |= mask;
    call.mask = mask;
    call.op = op;
    call.at = at;
  } else if (!call.arrived || call.mask != mask || call.op != op || !same_place(call.at, at)) {
    for (auto& other : warp.calls) {
      if (!other.arrived || !(other.mask & mask)) continue;
      fail("warp operation: lanes of one warp wait at different calls (line " + std::to_string(other.at.line()) + ")", at);
    }
  }
  void* const event = call.event.point();
  happens_before(event);
  call.arrived |= 1u << thread.lane;
  if (call.arrived == mask) finish_warp_call(warp, call, &machine.threads[thread.warp * kWarpSize]);
  wait();
  happens_after(event);
  return thread.result;
}

template <class T>
T shuffle(WarpOp op, unsigned mask, T value, int argument, int width, Location at) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_op(op, mask, bits, argument, width, at);
  memcpy(&value, &bits, sizeof value);
  return value;
}

// ---------------------------------------------------------------- shared memory

// NaN in every format. Inline assembly, since the race detector sees memset.
inline SIMT_INTERNAL void fill_with_nan(void* memory, size_t bytes) {
  asm volatile("rep stosb" : "+D"(memory), "+c"(bytes) : "a"(0xFF) : "memory");
}

inline SIMT_INTERNAL void* shared_array(void** slot, size_t bytes, Location at = Location::current()) {
  auto& m = machine;
  if (*slot) return *slot;
  m.shared_bytes += bytes;
  if (m.shared_bytes > kMaxSharedBytes) {
    fail(std::to_string(m.shared_bytes) + " bytes of shared memory; at most " + std::to_string(kMaxSharedBytes), at);
  }
  if (m.shared_bytes > kUnaskedSharedBytes && !m.asked_for_shared) {
    fail(std::to_string(m.shared_bytes) + " bytes of shared memory, and the launch did not ask for more than " + std::to_string(kUnaskedSharedBytes), at);
  }
  if (m.num_arrays == kMaxSharedArrays) fail("more than " + std::to_string(kMaxSharedArrays) + " shared arrays", at);
#if defined(__SANITIZE_THREAD__)
  *slot = m.arena + m.arena_used;  // new addresses for every block, so that blocks have only global memory in common
  m.arena_used += (bytes + 63) & ~size_t{63};
#else
  *slot = malloc(bytes);  // a piece of its own for each array, so that AddressSanitizer sees its end; malloc aligns to 16
#endif
  fill_with_nan(*slot, bytes);
  m.arrays[m.num_arrays++] = {slot, *slot};
  return *slot;
}

inline SIMT_INTERNAL void free_shared_arrays() {
  auto& m = machine;
  while (m.num_arrays > 0) {
    const auto& array = m.arrays[--m.num_arrays];
    *array.slot = nullptr;
#if !defined(__SANITIZE_THREAD__)
    free(array.memory);
#endif
  }
  m.shared_bytes = 0;
}

// ---------------------------------------------------------------- launch

inline SIMT_INTERNAL void end_of_thread() {
  auto& m = machine;
  Thread& thread = *m.current;
  Warp& warp = m.meetings->warps[thread.warp];
  thread.status = Status::kDone;
  ++m.num_done;
  warp.alive &= ~(1u << thread.lane);
  for (auto& call : warp.calls) {
    if (warp.awaited && call.arrived && call.mask >> thread.lane & 1) note_error("a lane ended while others of its warp wait for it", call.at);
  }
  if (m.num_waiting > 0) note_error("a thread ended while " + std::to_string(m.num_waiting) + " thread(s) wait at __syncthreads", m.barrier_at);
}

inline SIMT_INTERNAL void thread_main() {
  entered(machine.launcher);
  happens_after(&machine.begin_event);
  try {
    machine.body();
  } catch (const Aborted&) {
  } catch (const std::exception& error) {
    note_error(error.what(), Location::current());
  }
  end_of_thread();
  happens_before(&machine.end_event);
  leave(machine.launcher, *machine.current, true);
  std::abort();  // an ended thread is never entered again
}

// A stack for the thread of this number in its block, and for the race detector a fiber. There each thread of a launch has its own, since blocks
// are not ordered; those of a launch that is over serve the next one.
inline SIMT_INTERNAL void prepare_thread(Thread& thread) {
  static std::vector<Fiber> pool;
  size_t number = thread.number;
#if defined(__SANITIZE_THREAD__)
  number = machine.num_fibers++ % kMaxFibers;
  if (machine.num_fibers > kMaxFibers) {  // from here on every thread gets a new one
    __tsan_destroy_fiber(pool[number].tsan);
    munmap(pool[number].stack, kStackBytes);
    pool[number] = new_fiber();
  }
#endif
  if (number == pool.size()) pool.push_back(new_fiber());
  static_cast<Fiber&>(thread) = pool[number];
  prepare(thread, thread_main);
#if defined(__SANITIZE_THREAD__)
  machine.current = &thread;
  __tsan_set_fiber_name(thread.tsan, who().c_str());
#endif
}

inline SIMT_INTERNAL void report_deadlock() {
  unsigned at_barrier = 0, in_warp_op = 0;
  for (auto& thread : machine.threads) {
    at_barrier += thread.status == Status::kAtBarrier;
    in_warp_op += thread.status == Status::kInWarpOp;
  }
  for (auto& thread : machine.threads) {
    if (thread.status == Status::kDone) continue;
    machine.current = &thread;
    note_error("deadlock: " + std::to_string(at_barrier) + " threads at a barrier, " + std::to_string(in_warp_op) +
                   " in a warp operation; the first waits",
               thread.at);
    return;
  }
}

inline SIMT_INTERNAL void run_block(std::vector<unsigned>& order, std::mt19937& random, size_t dynamic_bytes) {
  auto& m = machine;
  m.num_waiting = m.num_done = 0;
  m.meetings = new (map_memory(sizeof(Meetings))) Meetings;
#if defined(__SANITIZE_THREAD__)
  m.arena = map_memory(kArenaBytes);
  m.arena_used = 0;
#endif
  if (dynamic_bytes > 0) shared_array(&m.dynamic, dynamic_bytes);
  for (unsigned i = 0; i < m.num_threads; ++i) {
    Thread& thread = m.threads[i];
    thread.number = i;
    thread.lane = i % kWarpSize;
    thread.warp = i / kWarpSize;
    thread.index = {i % m.block_size.x, i / m.block_size.x % m.block_size.y, i / m.block_size.x / m.block_size.y};
    thread.status = Status::kReady;
    m.meetings->warps[thread.warp].alive |= 1u << thread.lane;
    prepare_thread(thread);
  }
  happens_before(&m.begin_event);
  while (m.num_done < m.num_threads) {
    bool progress = false;
    if (m.schedule >= 2) std::shuffle(order.begin(), order.end(), random);
    for (unsigned i : order) {
      Thread& thread = m.threads[i];
      // After an error every thread is entered once more, to unwind.
      if (thread.status == Status::kDone || (thread.status != Status::kReady && !m.failed)) continue;
      m.current = &thread;
      enter(m.launcher, thread);
      progress = true;
    }
    if (!progress) report_deadlock();
  }
  free_shared_arrays();
  munmap(m.meetings, sizeof(Meetings));
#if defined(__SANITIZE_THREAD__)
  munmap(m.arena, kArenaBytes);
#endif
}

// "norm_forward_kernel<float, 4, true>", without namespaces, as csrc/verify.sh reads it from the machine code.
inline std::string short_name(std::string name) {
  for (const std::string space : {"megagpt::", "cuda::", "(anonymous namespace)::"}) {
    for (size_t at; (at = name.find(space)) != std::string::npos;) name.erase(at, space.size());
  }
  size_t begin = name.find('&') + 1;  // behind it: "name>" or "(void name<arguments>(types))>"
  if (name.compare(begin, 6, "(void ") == 0) begin += 6;
  size_t end = begin;
  for (int depth = 0; depth > 0 || (name[end] != '(' && name[end] != '>'); ++end) depth += (name[end] == '<') - (name[end] == '>');
  return name.substr(begin, end - begin);
}

template <auto kKernel>
const std::string& kernel_name() {
  static const std::string name = [] {
    char* const demangled = abi::__cxa_demangle(typeid(std::integral_constant<decltype(kKernel), kKernel>).name(), nullptr, nullptr, nullptr);
    const std::string result = short_name(demangled);
    free(demangled);
    return result;
  }();
  return name;
}

inline SIMT_INTERNAL void launch(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes, bool asked_for_shared,
                                 std::function<void()> body, Location at = Location::current()) {
  auto& m = machine;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  m.kernel = kernel;
  const auto refuse = [&](const std::string& what) { throw std::runtime_error(m.kernel + ": " + what + " at " + place(at)); };
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    refuse("a block of " + std::to_string(threads) + " threads; it must be 1 to 1024, at most 64 of them along z");
  }
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    refuse("a grid of " + std::to_string(blocks) + " blocks is outside the limits");
  }
  if (shared_bytes > kMaxSharedBytes) refuse(std::to_string(shared_bytes) + " bytes of shared memory; at most " + std::to_string(kMaxSharedBytes));
  m.block_size = block;
  m.grid_size = grid;
  m.num_threads = static_cast<unsigned>(threads);
  m.body = std::move(body);
  m.asked_for_shared = asked_for_shared;
  m.failed = false;
  m.threads.assign(m.num_threads, Thread{});
  ++m.counters.launches;
  auto& geometry = m.geometry[kernel];
  geometry = {std::max(geometry.threads, threads), std::max<uint64_t>(geometry.dynamic_bytes, shared_bytes)};
#if defined(__SANITIZE_THREAD__)
  m.launcher.tsan = __tsan_get_current_fiber();
  m.num_fibers = 0;
#endif
  std::vector<unsigned> order(m.num_threads);
  std::iota(order.begin(), order.end(), 0u);
  if (m.schedule == 1) std::reverse(order.begin(), order.end());
  std::mt19937 random(m.schedule);
  for (uint64_t k = 0; k < blocks && !m.failed; ++k) {
    const uint64_t number = m.schedule == 1 ? blocks - 1 - k : k;
    if (number < m.first_block || number > m.last_block) continue;
    m.block = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    m.current = nullptr;
    run_block(order, random, shared_bytes);
  }
  happens_after(&m.end_event);
  m.current = nullptr;
  if (m.failed) throw std::runtime_error(m.error);
}

}  // namespace simt

// ---------------------------------------------------------------- the words of CUDA that kernels use

#define threadIdx (::simt::machine.current->index)
#define blockIdx (::simt::machine.block)
#define blockDim (::simt::machine.block_size)
#define gridDim (::simt::machine.grid_size)
#define SHARED(T, name, count) \
  static void* name##_slot;    \
  T* const name = static_cast<T*>(::simt::shared_array(&name##_slot, sizeof(T) * (count)))
#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::simt::machine.dynamic)
#define LAUNCH(kernel, grid, block, bytes, stream, ...) \
  ::simt::launch(::simt::kernel_name<(kernel)>(), dim3(grid), dim3(block), bytes, ::megagpt::cuda::asks_for_shared(bytes), \
                 [&] { kernel(__VA_ARGS__); })

#define SIMT_HERE ::simt::Location at = ::simt::Location::current()
inline void __syncthreads(SIMT_HERE) { ::simt::sync_threads(at); }
inline void __syncwarp(unsigned mask = ~0u, SIMT_HERE) { ::simt::warp_op(::simt::WarpOp::kSync, mask, 0, 0, 32, at); }
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_HERE) {
  return ::simt::shuffle(::simt::WarpOp::kIndex, mask, value, lane, width, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_HERE) {
  return ::simt::shuffle(::simt::WarpOp::kXor, mask, value, bits, width, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_HERE) {
  return ::simt::shuffle(::simt::WarpOp::kUp, mask, value, int(distance), width, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_HERE) {
  return ::simt::shuffle(::simt::WarpOp::kDown, mask, value, int(distance), width, at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  return unsigned(::simt::warp_op(::simt::WarpOp::kBallot, mask, predicate != 0, 0, 32, at));
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return ::simt::warp_op(::simt::WarpOp::kBallot, mask, predicate != 0, 0, 32, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return ::simt::warp_op(::simt::WarpOp::kBallot, mask, predicate == 0, 0, 32, at) == 0;
}
template <class T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
  std::atomic_ref<unsigned> target(*address);
  unsigned seen = target.load(std::memory_order_relaxed);
  while (seen < value && !target.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
  return seen;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
