// What every launcher shares: sizes in blocks, the grid's limit, one call for the numbers' type.
#pragma once

#include "cuda/block.cuh"
#include "cuda/number.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

// Numbers of blocks beyond this are gone through in strides.
constexpr int64_t kMaxBlocks = 1 << 30;

inline int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }
inline unsigned grid(int64_t units) { return static_cast<unsigned>(min_of(units, kMaxBlocks)); }
// Threads of one block for so many numbers, in whole warps.
inline unsigned whole_warps(int64_t size, int64_t limit) {
  return static_cast<unsigned>(min_of(limit, blocks(max_of(size, 1), 32) * 32));
}

// Calls run(In{}) for the numbers' type, and returns what it returns.
template <typename Run>
auto dispatch(gpu::Number number, Run run) {
  switch (number) {
    case gpu::Number::f64:
      return run(double{});
    case gpu::Number::bf16:
      return run(Bf16{});
    case gpu::Number::f16:
      return run(Half{});
    default:
      return run(float{});
  }
}

// Calls run(Real{}) for the type of the numbers' sums.
template <typename Run>
auto dispatch_sum(gpu::Number number, Run run) {
  return number == gpu::Number::f64 ? run(double{}) : run(float{});
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
