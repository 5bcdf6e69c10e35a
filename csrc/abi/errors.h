// Errors, as torch hands them to Python: std::invalid_argument is a ValueError there,
// std::bad_alloc a MemoryError, and any other a RuntimeError. Since torch 2.15 all are
// RuntimeErrors: what they were is remembered, and asked for by fudlr_ext/ops/_autograd.py.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fudlr {

// Adds what is said of something to a message; abi/tensor.h has more.
inline void put(std::string& out, const char* words) { out += words; }
inline void put(std::string& out, const std::string& words) { out += words; }
inline void put(std::string& out, int64_t number) { out += std::to_string(number); }

// A message of its parts. Not by a stream, for whose constructor old systems' libraries are too
// old.
template <typename... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (put(out, parts), ...);
  return out;
}

// Throw what Python is to see as a ValueError or as a MemoryError.
[[noreturn]] void refuse_value(const std::string& said);
[[noreturn]] void refuse_memory(const std::string& said);
[[noreturn]] void refuse_workspace(int64_t bytes);

// What this thread threw last in one of these ways.
struct Refused {
  std::string said;
  bool memory = false;
};
const Refused& last_refused();

}  // namespace fudlr

// Throws std::invalid_argument with all that follows the condition, where that does not hold.
#define FUDLR_CHECK_VALUE(condition, ...)                \
  do {                                                   \
    if (!(condition)) [[unlikely]]                       \
      ::fudlr::refuse_value(::fudlr::text(__VA_ARGS__)); \
  } while (false)
