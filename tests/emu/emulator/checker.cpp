// The __tsan_* functions that -fsanitize=thread calls before every access, supplied by us.
//
// Races: two accesses to the same two bytes by different threads, one of them a write, are ordered
// if a barrier of the block lies between them, or a __syncwarp where both are of one warp; if they
// are of different blocks, never. Two atomic ones never race. This needs no unlucky schedule to be
// seen.
//
// Traffic: the n-th time that the lanes of a warp pass one place in the code is one instruction of
// the warp. Its 32-byte sectors are what it asks of global memory; in shared memory, the accesses
// to different words of one bank (of 32, four bytes wide) follow each other.
#include "emulator/checker.h"

#include "emulator/runtime.h"

#if !defined(FUDLR_EMULATOR_CHECK)

namespace emulator {
void check_begin_launch() {}
void check_begin_block() {}
void check_end_block() {}
void check_end_launch() {}
void check_matrix_row(const void*) {}
void check_atomic(const void*, int) {}
std::string check_report() { return "null"; }
void check_reset() {}
}  // namespace emulator

#else

#include <pthread.h>

#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include <unordered_map>

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));

namespace emulator {
namespace {

struct Access {
  uint64_t block = 0;
  int thread = -1;
  int warp = 0;
  uint32_t block_epoch = 0;
  uint32_t warp_epoch = 0;
  uintptr_t code = 0;
  bool atomic = false;
};

bool ordered(const Access& before, const Access& now) {
  if (before.atomic && now.atomic) return true;
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.block_epoch < now.block_epoch) return true;
  return before.warp == now.warp && before.warp_epoch < now.warp_epoch;
}

struct Cell {
  Access write;
  std::vector<Access> reads;
};
using Shadow = std::unordered_map<uintptr_t, Cell>;

struct Race {
  const char* kind;
  bool shared;
  uintptr_t code, other;
  bool operator<(const Race& o) const {
    return std::tie(code, other, shared) < std::tie(o.code, o.other, o.shared);
  }
};

// One place in the code: what the warps' instructions there asked for.
struct Site {
  bool shared = false, store = false;
  int width = 0;
  uint64_t instructions = 0, bytes = 0, sectors = 0, passes = 0, least_passes = 0;
};

struct Lane {
  uintptr_t address;
  int width;
};
using Instruction = std::tuple<int, uintptr_t, uint32_t>;  // warp, code, which time

struct Checker {
  Shadow shared, global;
  std::map<Instruction, std::vector<Lane> > instructions;
  std::map<std::pair<int, uintptr_t>, uint32_t> times;
  std::map<uintptr_t, Site> sites;
  std::map<Race, uint64_t> races;
  const char* stack_begin = nullptr;
  const char* stack_end = nullptr;
  bool active = false;
};

Checker& checker() {
  static Checker one;
  return one;
}

void note(const char* kind, bool shared, const Access& now, const Access& before) {
  ++checker().races[Race{kind, shared, now.code, before.code}];
}

void check_race(Cell& cell, const Access& now, bool store, bool shared) {
  const bool written = cell.write.thread >= 0;
  if (written && !ordered(cell.write, now)) {
    note(store ? "write after write" : "read after write", shared, now, cell.write);
  }
  std::vector<Access>& reads = cell.reads;
  if (store) {
    for (const Access& read : reads) {
      if (!ordered(read, now)) note("write after read", shared, now, read);
    }
    reads.clear();
    cell.write = now;
    return;
  }
  // Of a thread only its last read counts; a read that a barrier closed off cannot race any more.
  std::erase_if(reads, [&](const Access& read) {
    return read.block == now.block &&
           (read.thread == now.thread || read.block_epoch < now.block_epoch);
  });
  if (reads.size() < 64) reads.push_back(now);
}

uint64_t block_number() {
  const Launch& launch = launch_now();
  return launch.block_index.x +
         static_cast<uint64_t>(launch.grid.x) *
             (launch.block_index.y + static_cast<uint64_t>(launch.grid.y) * launch.block_index.z);
}

void access(const void* address, int width, bool store, const void* code, bool atomic = false) {
  Checker& c = checker();
  // Templates of the standard library may be shared with the scheduler, and watched there as well.
  if (!c.active || !in_fiber()) return;
  const char* byte = static_cast<const char*>(address);
  Fiber& self = fiber();
  if (in_stack(self, address) || (byte >= c.stack_begin && byte < c.stack_end) ||
      is_internal(address)) {
    return;
  }
  c.active = false;  // what follows is the checker's own doing
  const bool shared = in_shared(address);
  const uintptr_t place = reinterpret_cast<uintptr_t>(code);
  const Access now{shared ? 0 : block_number(),
                   self.thread,
                   self.warp,
                   self.block_epoch,
                   self.warp_epoch,
                   place,
                   atomic};
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t cell = at / 2; cell <= (at + width - 1) / 2; ++cell) {
    check_race((shared ? c.shared : c.global)[cell], now, store, shared);
  }
  const uint32_t time = c.times[{self.thread, place}]++;
  c.instructions[{self.warp, place, time}].push_back({at, width});
  Site& site = c.sites[place];
  site.shared = shared;
  site.store = store;
  site.width = width;
  c.active = true;
}

// Passes that shared memory needs for the lanes from `first` on: the most words in one bank.
uint64_t bank_passes(const std::vector<Lane>& lanes, size_t first, size_t count) {
  std::map<int, std::set<uintptr_t> > words;
  for (size_t i = first; i < std::min(first + count, lanes.size()); ++i) {
    for (uintptr_t word = lanes[i].address / 4; word <= (lanes[i].address + lanes[i].width - 1) / 4;
         ++word) {
      words[static_cast<int>(word % 32)].insert(word);
    }
  }
  size_t most = 0;
  for (const auto& [bank, set] : words) most = std::max(most, set.size());
  return most;
}

void add_instruction(Site& site, const std::vector<Lane>& lanes) {
  ++site.instructions;
  std::set<uintptr_t> sectors;
  for (const Lane& lane : lanes) {
    site.bytes += lane.width;
    for (uintptr_t s = lane.address / 32; s <= (lane.address + lane.width - 1) / 32; ++s) {
      sectors.insert(s);
    }
  }
  if (!site.shared) {
    site.sectors += sectors.size();
    return;
  }
  // Wide accesses are served in halves or quarters of a warp.
  const size_t group = lanes[0].width <= 4 ? 32 : lanes[0].width <= 8 ? 16 : 8;
  for (size_t first = 0; first < lanes.size(); first += group) {
    site.passes += bank_passes(lanes, first, group);
    ++site.least_passes;
  }
}

}  // namespace

void check_begin_launch() {
  Checker& c = checker();
  c.global.clear();
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* begin = nullptr;
  size_t bytes = 0;
  pthread_attr_getstack(&attributes, &begin, &bytes);
  pthread_attr_destroy(&attributes);
  c.stack_begin = static_cast<const char*>(begin);
  c.stack_end = c.stack_begin + bytes;
}

void check_begin_block() {
  checker().shared.clear();
  checker().times.clear();
  checker().active = true;
}

void check_end_block() {
  Checker& c = checker();
  c.active = false;
  for (const auto& [instruction, lanes] : c.instructions) {
    add_instruction(c.sites[std::get<1>(instruction)], lanes);
  }
  c.instructions.clear();
}

void check_end_launch() {}

void check_matrix_row(const void* row) { access(row, 16, false, __builtin_return_address(0)); }

void check_atomic(const void* address, int width) {
  access(address, width, true, __builtin_return_address(0), true);
}

std::string check_report() {
  const uintptr_t base = reinterpret_cast<uintptr_t>(__ehdr_start);
  std::ostringstream out;
  out << "{\"races\": [";
  const char* comma = "";
  for (const auto& [race, count] : checker().races) {
    out << comma << "{\"kind\": \"" << race.kind << "\", \"space\": \""
        << (race.shared ? "shared" : "global") << "\", \"code\": " << race.code - base
        << ", \"other\": " << race.other - base << ", \"count\": " << count << "}";
    comma = ", ";
  }
  out << "], \"sites\": [";
  comma = "";
  for (const auto& [code, site] : checker().sites) {
    out << comma << "{\"code\": " << code - base << ", \"space\": \""
        << (site.shared ? "shared" : "global")
        << "\", \"store\": " << (site.store ? "true" : "false") << ", \"width\": " << site.width
        << ", \"instructions\": " << site.instructions << ", \"bytes\": " << site.bytes
        << ", \"sectors\": " << site.sectors << ", \"passes\": " << site.passes
        << ", \"least_passes\": " << site.least_passes << "}";
    comma = ", ";
  }
  out << "]}";
  return out.str();
}

void check_reset() {
  Checker& c = checker();
  c.active = false;
  c.races.clear();
  c.sites.clear();
  c.instructions.clear();
}

}  // namespace emulator

#define FUDLR_SEEN(address, width, store) \
  emulator::access(address, width, store, __builtin_return_address(0))
#define FUDLR_WIDTH(width)                                                                \
  void __tsan_read##width(void* address) { FUDLR_SEEN(address, width, false); }           \
  void __tsan_write##width(void* address) { FUDLR_SEEN(address, width, true); }           \
  void __tsan_unaligned_read##width(void* address) { FUDLR_SEEN(address, width, false); } \
  void __tsan_unaligned_write##width(void* address) { FUDLR_SEEN(address, width, true); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// The guard of a host function's static object; kernels have none.
signed char __tsan_atomic8_load(const volatile signed char* address, int) { return *address; }
void __tsan_read_range(void* address, unsigned long size) {
  FUDLR_SEEN(address, static_cast<int>(size), false);
}
void __tsan_write_range(void* address, unsigned long size) {
  FUDLR_SEEN(address, static_cast<int>(size), true);
}
FUDLR_WIDTH(1)
FUDLR_WIDTH(2)
FUDLR_WIDTH(4)
FUDLR_WIDTH(8)
FUDLR_WIDTH(16)
}

#endif
