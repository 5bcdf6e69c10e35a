// torch's threads: ranges shared out between them, an error of one handed on to the caller.
#pragma once

#include <cstdint>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "abi/errors.h"
#include "abi/tensor.h"

namespace fudlr {

inline int64_t num_threads() {
  uint32_t count = 1;
  require(torch_get_num_threads(&count), "torch_get_num_threads");
  return count;
}

// Calls run(begin, end) for parts of a range, none under `grain` where there are several.
template <typename Run>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  struct Call {
    const Run& run;
    std::mutex mutex;
    std::string said, no_memory;
  } call{run, {}, {}, {}};
  const auto part = [](int64_t first, int64_t last, void* context) {
    auto& of = *static_cast<Call*>(context);
    try {
      of.run(first, last);  // whose errors must not cross the C ABI
    } catch (const std::bad_alloc& error) {
      const std::lock_guard lock(of.mutex);
      of.no_memory = error.what();
    } catch (const std::exception& error) {
      const std::lock_guard lock(of.mutex);
      of.said = error.what();
    }
  };
  require(torch_parallel_for(begin, end, grain, part, &call), "torch_parallel_for");
  if (!call.no_memory.empty()) refuse_memory(call.no_memory);
  if (!call.said.empty()) throw std::runtime_error(call.said);
}

}  // namespace fudlr
