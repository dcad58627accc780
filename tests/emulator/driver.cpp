// driver NAME [SCHEDULE ...]: runs the calls that cases.h has registered under this name, under all four schedules unless some are named; without a
// name, lists them. Says "NAME: silent" and ends with 0; otherwise with what went wrong: an error of the emulator or of the case, a sanitizer's
// report or a crash, to which a line adds what ran on the emulated device.
#include <csignal>
#include <cstdio>
#include <unistd.h>

#include "cases/cases.h"
#include "emulator.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

SIMT_INTERNAL void say_what_ran() {
  if (!simt::machine.current) return;
  const std::string line = "emulated: " + simt::machine.kernel + ", " + simt::who() + "\n";
  if (write(2, line.data(), line.size()) < 0) _exit(1);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void on_crash(int signal, siginfo_t* info, void*) {
  char line[80];
  const int length = snprintf(line, sizeof line, "%s at address %p\n", strsignal(signal), info->si_addr);
  if (write(2, line, length) < 0) _exit(1);
  say_what_ran();
  _exit(1);
}

// On a stack of its own, since a fiber's may be what has run over.
void watch_for_crashes() {
  static char stack[64 * 1024];
  const stack_t alternative{stack, 0, sizeof stack};
  sigaltstack(&alternative, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(signal, &action, nullptr);
}
#else
void watch_for_crashes() { __sanitizer_set_death_callback(say_what_ran); }
#endif

}  // namespace

extern "C" {
const char* __asan_default_options() { return "detect_leaks=0"; }
const char* __ubsan_default_options() { return "print_stacktrace=1"; }
const char* __tsan_default_options() { return "halt_on_error=1:report_thread_leaks=0:report_signal_unsafe=0"; }
void __ubsan_on_report() { say_what_ran(); }
}

int main(int count, char** arguments) {
  if (count < 2) {
    for (const auto& [name, run] : cases::registry()) puts(name.c_str());
    return 0;
  }
  const auto found = cases::registry().find(arguments[1]);
  if (found == cases::registry().end()) {
    fprintf(stderr, "%s: no such case\n", arguments[1]);
    return 2;
  }
  std::vector<unsigned> schedules;
  for (int i = 2; i < count; ++i) schedules.push_back(atoi(arguments[i]));
  if (schedules.empty()) schedules = {0, 1, 2, 3};
  watch_for_crashes();
  for (unsigned schedule : schedules) {
    simt::machine.schedule = schedule;
    try {
      found->second();
    } catch (const std::exception& error) {
      fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  }
  printf("%s: silent\n", arguments[1]);
}
