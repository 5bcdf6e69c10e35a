// What the tests steer the emulator with, through ctypes.
#include <cstring>

#include "emulator/checker.h"
#include "emulator/runtime.h"

#define FUDLR_PUBLIC extern "C" __attribute__((visibility("default")))

FUDLR_PUBLIC void emulator_schedule(int order, uint64_t seed) {
  emulator::set_schedule(static_cast<emulator::Order>(order), seed);
}

FUDLR_PUBLIC uint64_t emulator_launches() { return emulator::counts().launches; }
FUDLR_PUBLIC uint64_t emulator_threads() { return emulator::counts().threads; }

FUDLR_PUBLIC void emulator_reset() { emulator::check_reset(); }

// The checker's report, or "null" where the library was built without it; valid until the next
// call.
FUDLR_PUBLIC const char* emulator_report() {
  static std::string report;
  report = emulator::check_report();
  return report.c_str();
}
