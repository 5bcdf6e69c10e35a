// Tables of kernels that are compiled once for each instruction set, in a namespace of its own.
#pragma once

#include <cstdint>

namespace fudlr {

// A bfloat16 as it lies in memory.
struct Bfloat16 {
  uint16_t bits;
};

}  // namespace fudlr

// Declares the instances of a table; FUDLR_TABLE in choose.h is the one in use.
#define FUDLR_DECLARE_TABLE(Table, name) \
  namespace portable {                   \
  extern const Table name;               \
  }                                      \
  namespace avx2 {                       \
  extern const Table name;               \
  }                                      \
  namespace avx512 {                     \
  extern const Table name;               \
  }                                      \
  static_assert(true)
