// Fibers, barriers and schedules of the emulator. One operating-system thread runs it all.
#include "emulator/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <random>

#include "emulator/checker.h"
#include "emulator/switch.h"

// The linker's names for the first and last byte of this library's own code and data.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace emulator {

Fiber* running_fiber = nullptr;
Launch running_launch;

namespace {

struct SharedArray {
  std::unique_ptr<char[]> memory;
  size_t bytes = 0;
};

struct Warp {
  uint64_t priority = 0;
  uint32_t ready = 0;  // the lanes that are
};

struct Machine {
  Order order = Order::forward;
  std::mt19937_64 random;
  Counts counts;

  const std::function<void()>* thread = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char*> stacks;  // kept between launches
  Context main;

  std::map<const void*, SharedArray> shared;
  size_t dynamic_bytes = 0;
  std::string failure;
};

Machine& machine() {
  static Machine one;
  return one;
}

const char kDynamicKey = 0;

std::string where(const Place& place) {
  return std::string(place.file) + ":" + std::to_string(place.line);
}

std::string who(const Fiber& fiber) {
  const Index& block = running_launch.block_index;
  return "thread " + std::to_string(fiber.thread) + " of block (" + std::to_string(block.x) + ", " +
         std::to_string(block.y) + ", " + std::to_string(block.z) + ")";
}

void set_state(Fiber& fiber, State state) {
  fiber.state = state;
  Warp& warp = machine().warps[fiber.warp];
  const uint32_t lane = uint32_t{1} << fiber.lane;
  warp.ready = state == State::ready ? warp.ready | lane : warp.ready & ~lane;
}

void entry() {
  Machine& m = machine();
  finish_switch(m.main);
  try {
    (*m.thread)();
  } catch (const std::exception& error) {
    m.failure = who(*running_fiber) + ": " + error.what();
  }
  set_state(*running_fiber, State::done);
  leave_for_good(m.main);
}

// Gives the processor back to the scheduler until it picks this fiber again.
void wait(State state) {
  Fiber& self = *running_fiber;
  set_state(self, state);
  switch_from_fiber(self.stack_pointer, machine().main);
}

char* new_stack() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for a fiber's stack");
  return static_cast<char*>(memory);
}

void prepare_block() {
  Machine& m = machine();
  const size_t threads = running_launch.block.size();
  while (m.stacks.size() < threads) m.stacks.push_back(new_stack());
  m.fibers.assign(threads, Fiber());
  m.warps.assign((threads + kWarp - 1) / kWarp, Warp());
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = m.fibers[i];
    const Extent& block = running_launch.block;
    fiber.index = {static_cast<unsigned>(i % block.x), static_cast<unsigned>(i / block.x % block.y),
                   static_cast<unsigned>(i / block.x / block.y)};
    fiber.thread = static_cast<int>(i);
    fiber.lane = static_cast<int>(i % kWarp);
    fiber.warp = static_cast<int>(i / kWarp);
    fiber.stack = m.stacks[i];
    fiber.stack_pointer = new_context(fiber.stack, kStackBytes, entry);
    set_state(fiber, State::ready);
  }
  m.shared.clear();
}

void draw_priorities() {
  Machine& m = machine();
  for (Warp& warp : m.warps) warp.priority = m.random();
}

// The ready fiber that runs next, or null. Random: the warps have priorities, drawn anew at every
// barrier, so that one of them may run far ahead of another; lanes are drawn one by one.
Fiber* pick() {
  Machine& m = machine();
  const Warp* best = nullptr;
  for (const Warp& warp : m.warps) {
    if (warp.ready == 0) continue;
    const bool later = m.order == Order::reverse ||
                       (m.order == Order::random && best && warp.priority > best->priority);
    if (best == nullptr || later) best = &warp;
  }
  if (best == nullptr) return nullptr;
  uint32_t lanes = best->ready;
  int lane = m.order == Order::reverse ? std::bit_width(lanes) - 1 : std::countr_zero(lanes);
  if (m.order == Order::random) {
    for (int skip = static_cast<int>(m.random() % std::popcount(lanes)); skip > 0; --skip) {
      lanes &= lanes - 1;
    }
    lane = std::countr_zero(lanes);
  }
  return &m.fibers[static_cast<size_t>(best - m.warps.data()) * kWarp + lane];
}

// Lets the block go on once every thread that has not ended waits at its barrier.
bool release_barrier() {
  Machine& m = machine();
  const Fiber* first = nullptr;
  for (const Fiber& fiber : m.fibers) {
    if (fiber.state == State::done) continue;
    if (fiber.state != State::at_barrier) return false;
    if (first == nullptr) first = &fiber;
    if (!(fiber.place == first->place)) {
      throw std::runtime_error("divergent barrier: " + who(*first) + " waits at " +
                               where(first->place) + ", " + who(fiber) + " at " +
                               where(fiber.place));
    }
  }
  if (first == nullptr) return false;
  for (Fiber& fiber : m.fibers) {
    if (fiber.state != State::at_barrier) continue;
    set_state(fiber, State::ready);
    ++fiber.block_epoch;
  }
  draw_priorities();
  return true;
}

// Combines what the lanes of a warp brought, once all that are named have come.
bool release_warp(Fiber& one) {
  Machine& m = machine();
  if (one.mask & m.warps[one.warp].ready) return false;
  Fiber* lanes = &m.fibers[static_cast<size_t>(one.warp) * kWarp];
  const size_t count =
      std::min<size_t>(kWarp, m.fibers.size() - static_cast<size_t>(one.warp) * kWarp);
  Lanes payloads{};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(one.mask >> lane & 1)) continue;
    if (static_cast<size_t>(lane) >= count) {
      throw std::runtime_error("warp operation at " + where(one.place) + " names lane " +
                               std::to_string(lane) + ", which the block does not have");
    }
    const Fiber& other = lanes[lane];
    if (other.state != State::at_warp || !(other.place == one.place) || other.mask != one.mask) {
      return false;
    }
    payloads[lane] = other.payload;
  }
  if (one.combine != nullptr) one.combine(payloads);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(one.mask >> lane & 1)) continue;
    set_state(lanes[lane], State::ready);
    // A shuffle orders no memory; __syncwarp, which combines nothing, does.
    if (one.combine == nullptr) ++lanes[lane].warp_epoch;
  }
  return true;
}

[[noreturn]] void report_stuck() {
  Machine& m = machine();
  std::string message = "threads wait for each other for ever:";
  int shown = 0;
  for (const Fiber& fiber : m.fibers) {
    if (fiber.state == State::done || ++shown > 4) continue;
    message += " " + who(fiber) + " waits at " +
               (fiber.state == State::at_barrier ? "the barrier " : "the warp operation ") +
               where(fiber.place) + ";";
  }
  throw std::runtime_error(message + " a barrier or warp operation stands in a divergent branch");
}

void run_block() {
  Machine& m = machine();
  prepare_block();
  draw_priorities();
  check_begin_block();
  for (;;) {
    Fiber* next = pick();
    if (next == nullptr) {
      const bool all_done = std::all_of(m.fibers.begin(), m.fibers.end(),
                                        [](const Fiber& f) { return f.state == State::done; });
      if (all_done) break;
      if (release_barrier()) continue;
      report_stuck();
    }
    running_fiber = next;
    switch_to_fiber(m.main, next->stack_pointer, next->stack, kStackBytes);
    running_fiber = nullptr;
    if (!m.failure.empty()) throw std::runtime_error(m.failure);
    if (next->state == State::at_warp) release_warp(*next);
  }
  check_end_block();
}

}  // namespace

void set_schedule(Order order, uint64_t seed) {
  machine().order = order;
  machine().random.seed(seed);
}

const Counts& counts() { return machine().counts; }

void block_barrier(Place place) {
  fiber().place = place;
  wait(State::at_barrier);
}

void warp_together(uint32_t mask, void* payload, Combine combine, Place place) {
  Fiber& self = fiber();
  if (!(mask >> self.lane & 1)) {
    throw std::runtime_error("lane " + std::to_string(self.lane) + " is not in its own mask at " +
                             where(place));
  }
  self.place = place;
  self.mask = mask;
  self.payload = payload;
  self.combine = combine;
  wait(State::at_warp);
}

void* shared_array(const void* key, size_t bytes) {
  SharedArray& array = machine().shared[key];
  if (array.memory == nullptr) {
    array.memory.reset(new char[std::max<size_t>(bytes, 1)]);
    array.bytes = bytes;
    std::memset(array.memory.get(), 0xff, bytes);
  }
  return array.memory.get();
}

void* dynamic_shared() { return shared_array(&kDynamicKey, machine().dynamic_bytes); }

bool in_shared(const void* address) {
  for (const auto& [key, array] : machine().shared) {
    const char* begin = array.memory.get();
    if (address >= begin && address < begin + array.bytes) return true;
  }
  return false;
}

bool in_stack(const Fiber& of, const void* address) {
  return address >= of.stack && address < of.stack + kStackBytes;
}

bool is_internal(const void* address) {
  const char* byte = static_cast<const char*>(address);
  const std::vector<Fiber>& fibers = machine().fibers;
  const char* begin = reinterpret_cast<const char*>(fibers.data());
  if (byte >= begin && byte < begin + fibers.size() * sizeof(Fiber)) return true;
  return byte >= __ehdr_start && byte < _end;
}

void run(Extent grid, Extent block, size_t dynamic_bytes, const std::function<void()>& thread) {
  Machine& m = machine();
  if (block.size() == 0 || block.size() > 1024 || grid.size() == 0) {
    throw std::runtime_error("a launch of " + std::to_string(grid.size()) + " blocks of " +
                             std::to_string(block.size()) + " threads is no launch");
  }
  running_launch = {grid, block, {}};
  m.thread = &thread;
  m.dynamic_bytes = dynamic_bytes;
  m.failure.clear();
  ++m.counts.launches;
  m.counts.threads += grid.size() * block.size();
  std::vector<size_t> blocks(grid.size());
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  if (m.order == Order::reverse) std::reverse(blocks.begin(), blocks.end());
  if (m.order == Order::random) std::shuffle(blocks.begin(), blocks.end(), m.random);
  check_begin_launch();
  for (const size_t i : blocks) {
    running_launch.block_index = {static_cast<unsigned>(i % grid.x),
                                  static_cast<unsigned>(i / grid.x % grid.y),
                                  static_cast<unsigned>(i / grid.x / grid.y)};
    run_block();
  }
  m.shared.clear();
  check_end_launch();
}

}  // namespace emulator
