// Runs a kernel on the CPU: one fiber for each CUDA thread of a block, one block after the other.
//
// A fiber runs until it meets a barrier or a warp's common operation; then the schedule picks
// another one. What waits for what is checked: a barrier that some threads of a block reach at
// another line than the others, a shuffle that some of its lanes never reach, and the like end the
// launch with an error that names the lines.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Extent {
  unsigned x = 1, y = 1, z = 1;
  Extent() = default;
  Extent(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  size_t size() const { return static_cast<size_t>(x) * y * z; }
};

constexpr int kWarp = 32;

// Where a barrier or a warp operation stands in the source.
struct Place {
  const char* file = "";
  int line = 0;
  bool operator==(const Place& other) const { return line == other.line && file == other.file; }
};

enum class State { ready, at_barrier, at_warp, done };

// A warp's common operation: what each lane brings and takes, by lane; null where a lane is not in
// the mask.
using Lanes = std::array<void*, kWarp>;
using Combine = void (*)(const Lanes&);

struct Fiber {
  Index index;
  int thread = 0;  // its number in the block
  int lane = 0;
  int warp = 0;
  State state = State::ready;
  Place place;
  uint32_t mask = 0;
  void* payload = nullptr;
  Combine combine = nullptr;
  // Times that the block and the warp were brought together before what the fiber does now.
  uint32_t block_epoch = 0;
  uint32_t warp_epoch = 0;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
};

struct Launch {
  Extent grid, block;
  Index block_index;
};

enum class Order { forward, reverse, random };

// Schedules blocks, warps and lanes of all later launches.
void set_schedule(Order order, uint64_t seed);

// The fiber that runs now, or null, and its launch. Kernels ask for them at every turn.
extern Fiber* running_fiber;
extern Launch running_launch;
inline Fiber& fiber() { return *running_fiber; }
inline bool in_fiber() { return running_fiber != nullptr; }
inline const Launch& launch_now() { return running_launch; }

// Waits for all threads of the block that have not ended.
void block_barrier(Place place);

// Waits for the lanes of `mask`, and runs `combine` once on what all of them brought.
void warp_together(uint32_t mask, void* payload, Combine combine, Place place);

// Memory that a block shares: new for each block, filled with ones (NaN as a floating-point
// number), apart from other memory so that AddressSanitizer sees what runs over.
void* shared_array(const void* key, size_t bytes);
void* dynamic_shared();

// The shared array, if any, that an address lies in.
bool in_shared(const void* address);

// Runs `thread` as every thread of every block.
void run(Extent grid, Extent block, size_t dynamic_shared_bytes,
         const std::function<void()>& thread);

// Launches since the library was loaded, and threads in them.
struct Counts {
  uint64_t launches = 0;
  uint64_t threads = 0;
};
const Counts& counts();

// Whether an address belongs to the emulator itself: fibers, indices, constants of the library.
bool is_internal(const void* address);

constexpr size_t kStackBytes = 256 * 1024;
bool in_stack(const Fiber& of, const void* address);

}  // namespace emulator
