// What the tests set and read, through ctypes.
#include "emulator.h"

extern "C" {
void simt_configure(unsigned schedule, uint64_t first_block, uint64_t last_block) {
  simt::machine.schedule = schedule;
  simt::machine.first_block = first_block;
  simt::machine.last_block = last_block;
}
void simt_reset_counters() {
  simt::machine.counters = {};
  simt::machine.geometry.clear();
}
uint64_t simt_loaded() { return simt::machine.counters.loaded; }
uint64_t simt_stored() { return simt::machine.counters.stored; }
uint64_t simt_launches() { return simt::machine.counters.launches; }
// One line for each kernel since the last reset: name, most threads of a block, most bytes of dynamic shared memory; between them, tabs.
const char* simt_geometry() {
  static std::string lines;
  lines.clear();
  for (const auto& [kernel, geometry] : simt::machine.geometry) {
    lines += kernel + "\t" + std::to_string(geometry.threads) + "\t" + std::to_string(geometry.dynamic_bytes) + "\n";
  }
  return lines.c_str();
}
}
