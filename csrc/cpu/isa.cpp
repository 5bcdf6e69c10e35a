#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fudlr {
namespace {

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma");
  }
#endif
  return isa == Isa::portable;
}

[[noreturn]] void refuse(const std::string& name, const char* found) {
  throw std::invalid_argument("fudlr_ext: instruction set '" + name + "' was asked for: " + found +
                              ". Choose portable, avx2 or avx512, or unset FUDLR_ISA for the best "
                              "that there is.");
}

Isa parse(const std::string& name) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name != isa_name(isa)) continue;
    if (!cpu_has(isa)) refuse(name, "this CPU does not have it");
    return isa;
  }
  refuse(name, "there is none of that name");
}

Isa initial() {
  const char* wanted = std::getenv("FUDLR_ISA");
  if (wanted != nullptr && *wanted != '\0') return parse(wanted);
  for (Isa isa : {Isa::avx512, Isa::avx2}) {
    if (cpu_has(isa)) return isa;
  }
  return Isa::portable;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

Isa active_isa() { return current().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

void set_isa(const std::string& name) { current().store(parse(name), std::memory_order_relaxed); }

}  // namespace fudlr
