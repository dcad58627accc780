// A fiber is one CUDA thread: a stack of its own and a place to go on from. x86-64 only.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// The emulator's own bookkeeping is not what the race detector is to look at.
#define SIMT_INTERNAL __attribute__((no_sanitize("thread")))

namespace simt {

constexpr size_t kStackBytes = 256 * 1024;

// Saves the callee-saved registers on the stack that is left, and takes up those of the stack that is entered.
extern "C" void simt_switch(void** left, void* entered);
asm(R"(.text
.globl simt_switch
.weak simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

struct Fiber {
  void* top = nullptr;    // saved stack pointer
  char* stack = nullptr;  // lowest address; its first page is not accessible
  void* tsan = nullptr;
  void* asan = nullptr;
};

// The thread that launches kernels; fibers switch to it and back.
struct Launcher {
  void* top = nullptr;
  void* tsan = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

inline SIMT_INTERNAL char* map_memory(size_t bytes) {
  return static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}

inline SIMT_INTERNAL Fiber new_fiber() {
  Fiber fiber;
  fiber.stack = map_memory(kStackBytes);
  mprotect(fiber.stack, 4096, PROT_NONE);
#if defined(__SANITIZE_THREAD__)
  fiber.tsan = __tsan_create_fiber(0);
#endif
  return fiber;
}

// Lets the fiber begin with `entry` when it is entered for the first time.
inline SIMT_INTERNAL void prepare(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack + 4096, kStackBytes - 4096);
#endif
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 1;
  *top = nullptr;                               // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);      // where simt_switch returns to
  top -= 6;
  memset(top, 0, 6 * sizeof(void*));
  fiber.top = top;
}

inline SIMT_INTERNAL void enter(Launcher& launcher, Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch(&launcher.top, fiber.top);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// The first thing that a fiber does.
inline SIMT_INTERNAL void entered([[maybe_unused]] Launcher& launcher) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &launcher.stack, &launcher.stack_bytes);
#endif
}

inline SIMT_INTERNAL void leave(Launcher& launcher, Fiber& fiber, [[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.asan, launcher.stack, launcher.stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(launcher.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch(&fiber.top, launcher.top);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.asan, nullptr, nullptr);
#endif
}

// What happens before, through a barrier or a launch, as the race detector is told.
inline SIMT_INTERNAL void happens_before([[maybe_unused]] void* event) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(event);
#endif
}
inline SIMT_INTERNAL void happens_after([[maybe_unused]] void* event) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(event);
#endif
}

}  // namespace simt
