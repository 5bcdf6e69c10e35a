// Pieces that several kernels share: 128-bit loads and stores, and sums over a block in one order.
#pragma once

#include "cuda/cuda_compat.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr unsigned kAllLanes = 0xffffffffu;

// The type that sums are kept in.
template <typename In>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <typename In>
using Sum = typename SumOf<In>::type;

// Numbers in 16 bytes, what one thread can move at once.
template <typename Number>
constexpr int kVector = 16 / static_cast<int>(sizeof(Number));

FUDLR_BOTH int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
FUDLR_BOTH int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// The first of low .. high for which after(i) holds, or high; it is false before and true after.
template <typename After>
FUDLR_DEVICE int64_t bisect(int64_t low, int64_t high, After after) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (after(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The last i of 0 .. n - 1 with offsets[i] <= at; 0 where there is none.
FUDLR_DEVICE int64_t segment_of(const int64_t* offsets, int64_t n, int64_t at) {
  return bisect(1, n, [&](int64_t i) { return offsets[i] > at; }) - 1;
}

template <typename Number>
FUDLR_DEVICE Number quiet_nan() {
  return static_cast<Number>(__int_as_float(0x7fc00000));
}

// N numbers, N a multiple of a vector, from an address that is a multiple of 16.
template <typename Number, int N>
FUDLR_DEVICE void load_vectors(const Number* from, Number (&to)[N]) {
  static_assert(N % kVector<Number> == 0);
#pragma unroll
  for (int i = 0; i < N; i += kVector<Number>) {
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
}

// N numbers of which the first `count` exist, the others zero; whole vectors where `aligned` says
// that the address is a multiple of 16.
template <typename Number, int N>
FUDLR_DEVICE void load_some(const Number* from, int64_t count, bool aligned, Number (&to)[N]) {
  if (aligned && count >= N) {
    load_vectors(from, to);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = i < count ? from[i] : narrow_to<Number>(0.f);
}

template <typename Number, int N>
FUDLR_DEVICE void store_some(const Number (&from)[N], int64_t count, bool aligned, Number* to) {
  if (aligned && count >= N) {
#pragma unroll
    for (int i = 0; i < N; i += kVector<Number>) {
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < count) to[i] = from[i];
  }
}

FUDLR_DEVICE bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// The sum over a warp's lanes, halves first: the same tree whatever the lanes hold.
template <typename Number>
FUDLR_DEVICE Number warp_sum(Number value) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) value += __shfl_xor_sync(kAllLanes, value, other);
  return value;
}

template <typename Number>
FUDLR_DEVICE Number warp_max(Number value) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    const Number theirs = __shfl_xor_sync(kAllLanes, value, other);
    value = theirs > value ? theirs : value;
  }
  return value;
}

// The sum over a block of at most 8 warps, for each of its threads: lanes, then warps. Begins with
// a barrier.
template <typename Number>
FUDLR_DEVICE Number block_total(Number value) {
  FUDLR_SHARED(Number, sums, [8]);
  value = warp_sum(value);
  __syncthreads();  // the sums of the call before have been read
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  Number sum = sums[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += sums[w];
  return sum;
}

// to[j] = Σ over the block of product(j), for 0 <= j < k: in a warp by warp_sum, then warp after
// warp. Begins and ends with a barrier. At most 8 warps.
template <typename Number, typename Product>
FUDLR_DEVICE void block_sums(int64_t k, Number* to, Product product) {
  constexpr int kAtOnce = 8;
  FUDLR_SHARED(Number, sums, [8][kAtOnce]);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  for (int64_t first = 0; first < k; first += kAtOnce) {
    const int count = static_cast<int>(min_of(kAtOnce, k - first));
    __syncthreads();  // the sums of the round before have been read
    for (int j = 0; j < count; ++j) {
      const Number sum = warp_sum(product(first + j));
      if (lane == 0) sums[warp][j] = sum;
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) {
      Number sum = sums[0][threadIdx.x];
      for (int w = 1; w < warps; ++w) sum += sums[w][threadIdx.x];
      to[first + threadIdx.x] = sum;
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
