// Tiles of attention: 64 rows of one side × 64 of the other, of one head of one sample.
//
// Who does what. 256 threads, thread t with the tile's rows 4 (t / 16) + 0..3 and columns
// 4 (t % 16) + 0..3: its share, 16 numbers in registers. A tile is the product of two sets of rows
// over a head's width, in slabs of 16 numbers (8 doubles) of depth: they come to registers by
// 128-bit loads (64-bit ones of 16-bit numbers, which are widened here) while the slab before is
// multiplied, and go to shared memory turned over, so that a thread reads its 4 rows and 4 columns
// as vectors. A tile of coefficients goes through shared memory, columns first, to be multiplied
// with rows of the other side. The width is a loop: no kernel knows it.
#pragma once

#include "cuda/attention.h"
#include "cuda/block.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {
namespace attend {

using gpu::Number;

constexpr int kThreads = 256;
constexpr int kSide = 64;
constexpr int kEach = 4;  // rows and columns of a thread's share
constexpr int kAcross = kSide / kEach;

template <typename Real>
constexpr int kDepth = 64 / static_cast<int>(sizeof(Real));
// Columns of results that a block sums at a time, in units of kSide.
template <typename Real>
constexpr int kChunks = sizeof(Real) == 4 ? 2 : 1;
template <typename Real>
using Slab = Real[kDepth<Real>][kSide + 4];
template <typename Real>
using Tile = Real[kSide][kSide + 4];
template <typename Real>
using Share = Real[kEach][kEach];

FUDLR_DEVICE int up_to_side(int64_t rows) { return static_cast<int>(min_of(kSide, rows)); }
FUDLR_DEVICE int share_row() { return static_cast<int>(threadIdx.x) / kAcross * kEach; }
FUDLR_DEVICE int share_column() { return static_cast<int>(threadIdx.x) % kAcross * kEach; }

// A block's shared memory: slabs, coefficients, and how many keys each of a tile's queries sees.
template <typename Real>
struct Board {
  Slab<Real>&left, &right;
  Tile<Real>& tile;
  int64_t (&limits)[kSide];
};

// Rows of one head: row r's numbers lie at data[at + r · stride], of the `count` that exist.
struct Rows {
  const void* data;
  int64_t at, stride;
  int count;
};
struct Pair {
  Rows a, b;
};

// `count` rows from `first` on, of an array with k rows a position, the j-th of each.
FUDLR_DEVICE Rows rows_of(const gpu::Lines& lines, int64_t first, int count, int64_t k, int64_t j,
                          int64_t column) {
  return {lines.data, (first * k + j) * lines.stride + column, lines.stride * k, count};
}

// Bytes of `from` to `to`, both multiples of N (8, 16, 32), as vectors.
template <int N>
FUDLR_DEVICE void move(void* to, const void* from) {
  if constexpr (N == 8) {
    *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < N / 16; ++i)
      static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  }
}

// The number with these bits, of 16 or 32.
FUDLR_DEVICE float number_with(Number number, uint32_t bits) {
  const uint16_t low = static_cast<uint16_t>(bits);
  if (number == Number::f16) return widen(*reinterpret_cast<const Half*>(&low));
  return __int_as_float(static_cast<int>(number == Number::bf16 ? bits << 16 : bits));
}

// Numbers from data[at] on, of which the first `count` exist, the others zero.
FUDLR_DEVICE void fetch(Number, const void* data, int64_t at, int count, double (&to)[2]) {
  const double* from = static_cast<const double*>(data) + at;
  load_some(from, count, is_aligned(from), to);
}
FUDLR_DEVICE void fetch(Number number, const void* data, int64_t at, int count, float (&to)[4]) {
  const bool narrow = number != Number::f32;
  const unsigned char* from = static_cast<const unsigned char*>(data) + at * (narrow ? 2 : 4);
  uint32_t bits[4] = {};
  if (count >= 4 && reinterpret_cast<uintptr_t>(from) % (narrow ? 8 : 16) == 0) {
    if (narrow) {
      const uint2 all = *reinterpret_cast<const uint2*>(from);
      bits[0] = all.x & 0xffff, bits[1] = all.x >> 16;
      bits[2] = all.y & 0xffff, bits[3] = all.y >> 16;
    } else {
      const uint4 all = *reinterpret_cast<const uint4*>(from);
      bits[0] = all.x, bits[1] = all.y, bits[2] = all.z, bits[3] = all.w;
    }
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      if (v >= count) continue;
      bits[v] = narrow ? reinterpret_cast<const uint16_t*>(from)[v]
                       : reinterpret_cast<const uint32_t*>(from)[v];
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) to[v] = number_with(number, bits[v]);
}

template <typename Out, typename Real>
FUDLR_DEVICE void deposit_as(void* data, int64_t at, int count, const Real (&from)[kEach]) {
  constexpr int kBytes = kEach * static_cast<int>(sizeof(Out));
  Out* to = static_cast<Out*>(data) + at;
  alignas(16) Out numbers[kEach];
#pragma unroll
  for (int v = 0; v < kEach; ++v) {
    if constexpr (sizeof(Out) == 8) {
      numbers[v] = from[v];
    } else {
      numbers[v] = narrow_to<Out>(from[v]);
    }
  }
  if (count >= kEach && reinterpret_cast<uintptr_t>(to) % (kBytes < 16 ? kBytes : 16) == 0) {
    move<kBytes>(to, numbers);
    return;
  }
#pragma unroll
  for (int v = 0; v < kEach; ++v) {
    if (v < count) to[v] = numbers[v];
  }
}
// The first `count` of four numbers to data[at] on.
template <typename Real>
FUDLR_DEVICE void deposit(Number number, void* data, int64_t at, int count,
                          const Real (&from)[kEach]) {
  if constexpr (sizeof(Real) == 8) {
    deposit_as<double>(data, at, count, from);
  } else if (number == Number::bf16) {
    deposit_as<Bf16>(data, at, count, from);
  } else if (number == Number::f16) {
    deposit_as<Half>(data, at, count, from);
  } else {
    deposit_as<float>(data, at, count, from);
  }
}

// NaN for all of an array, the whole grid together.
template <typename Real>
FUDLR_DEVICE void fill_with_nan(Number number, const gpu::OutLines& out, int64_t rows,
                                int64_t columns) {
  const Real nan[kEach] = {quiet_nan<Real>(), quiet_nan<Real>(), quiet_nan<Real>(),
                           quiet_nan<Real>()};
  const int64_t across = (columns + kEach - 1) / kEach;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < rows * across;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t column = i % across * kEach;
    deposit(number, out.data, i / across * out.stride + column,
            static_cast<int>(min_of(kEach, columns - column)), nan);
  }
}

// One thread's numbers of a slab on their way from global to shared memory, zero where none exist.
// kTurned: kSide rows and kDepth columns, turned over; else kDepth rows and kSide columns.
template <typename Real, bool kTurned>
struct SlabPart {
  static constexpr int V = kVector<Real>;
  static constexpr int kVectors = (kTurned ? kDepth<Real> : kSide) / V;  // of a row
  static_assert((kTurned ? kSide : kDepth<Real>)*kVectors == kThreads);
  alignas(16) Real numbers[V];

  static FUDLR_DEVICE int row() { return static_cast<int>(threadIdx.x) / kVectors; }
  static FUDLR_DEVICE int column() { return static_cast<int>(threadIdx.x) % kVectors * V; }

  FUDLR_DEVICE void load(Number number, const Rows& rows, int first_row, int first_column,
                         int width) {
    const int r = first_row + row();
    const int c = first_column + column();
    const int count = r < rows.count ? width - c : 0;
    fetch(number, rows.data, count > 0 ? rows.at + r * rows.stride + c : 0, count, numbers);
  }
  FUDLR_DEVICE void store(Slab<Real>& to) const {
    if constexpr (kTurned) {
#pragma unroll
      for (int v = 0; v < V; ++v) to[column() + v][row()] = numbers[v];
    } else {
      move<16>(&to[row()][column()], numbers);
    }
  }
};

template <typename Real>
FUDLR_DEVICE void clear(Share<Real>& share) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) share[i][j] = 0;
  }
}

// share += x yᵀ for the thread's rows of `a` and columns of `b`.
template <typename Real>
FUDLR_DEVICE void add_outer(const Real* a, const Real* b, Share<Real>& share) {
  alignas(16) Real x[kEach];
  alignas(16) Real y[kEach];
  load_vectors(a + share_row(), x);
  load_vectors(b + share_column(), y);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) share[i][j] += x[i] * y[j];
  }
}

// share += Σ over the first `pairs` of the two: a bᵀ. Passes a barrier before it writes shared
// memory.
template <typename Real>
FUDLR_DEVICE void multiply(Number number, Pair pair, const Pair& second, int pairs, int width,
                           const Board<Real>& board, Share<Real>& share) {
  SlabPart<Real, true> a, b;
#pragma unroll 1
  for (int s = 0; s < pairs; ++s) {
#pragma unroll 1
    for (int k = 0; k < width + kDepth<Real>; k += kDepth<Real>) {
      if (k > 0) {
        __syncthreads();  // the slabs of before have been read
        a.store(board.left);
        b.store(board.right);
        __syncthreads();  // these are there
      }
      if (k < width) {
        a.load(number, pair.a, 0, k, width);
        b.load(number, pair.b, 0, k, width);
      }
      if (k == 0 || share_row() >= pair.a.count) continue;
#pragma unroll 4
      for (int d = 0; d < kDepth<Real>; ++d) add_outer(board.left[d], board.right[d], share);
    }
    pair = second;
  }
}

// sums += share · b for the `rows` rows that exist, and the columns of b from `column` on. Passes a
// barrier before it writes shared memory.
template <typename Real>
FUDLR_DEVICE void mix(Number number, const Share<Real>& share, int rows, const Rows& b, int column,
                      int width, const Board<Real>& board, Share<Real> (&sums)[kChunks<Real>]) {
  __syncthreads();  // the tile of before has been read
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    alignas(16) Real turned[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) turned[i] = share[i][j];
    move<kEach * sizeof(Real)>(&board.tile[share_column() + j][share_row()], turned);
  }
#pragma unroll
  for (int c = 0; c < kChunks<Real>; ++c) {
    const int first = column + c * kSide;
    if (first >= width) break;
    SlabPart<Real, false> part;
#pragma unroll 1
    for (int k = 0; k < b.count + kDepth<Real>; k += kDepth<Real>) {
      if (k > 0) {
        __syncthreads();  // the slab of before has been read
        part.store(board.right);
        __syncthreads();  // this one is there, and the tile
      }
      if (k < b.count) part.load(number, b, k, first, width);
      if (k == 0 || share_row() >= rows) continue;
#pragma unroll 4
      for (int d = 0; d < kDepth<Real>; ++d) {
        add_outer(board.tile[k - kDepth<Real> + d], board.right[d], sums[c]);
      }
    }
  }
}

// The sums, times each row's factor, to the `count` rows at data[at + row · stride].
template <typename Real>
FUDLR_DEVICE void put(Number number, const Share<Real> (&sums)[kChunks<Real>],
                      const Real (&factor)[kEach], int count, int64_t at, int64_t stride,
                      int column, int width, void* data) {
#pragma unroll
  for (int c = 0; c < kChunks<Real>; ++c) {
    const int first = column + c * kSide + share_column();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      Real scaled[kEach];
#pragma unroll
      for (int j = 0; j < kEach; ++j) scaled[j] = factor[i] * sums[c][i][j];
      const int row = share_row() + i;
      if (row < count) deposit(number, data, at + row * stride + first, width - first, scaled);
    }
  }
}

// The sum, or the largest, of the 16 threads with the same rows.
template <typename Real>
FUDLR_DEVICE Real row_sum(Real value) {
#pragma unroll
  for (int other = kAcross / 2; other > 0; other /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, other);
  }
  return value;
}
template <typename Real>
FUDLR_DEVICE Real row_max(Real value) {
#pragma unroll
  for (int other = kAcross / 2; other > 0; other /= 2) {
    const Real theirs = __shfl_xor_sync(kAllLanes, value, other);
    value = theirs > value ? theirs : value;
  }
  return value;
}

// Up to kSide rows of one sample, begin to end. Rows are cut into slots that only the offsets know:
// sample i's are the slots from offsets[i] / kSide + i on, at least as many as it has tiles; those
// that it does not need are empty.
struct Span {
  int64_t sample, begin, end;

  FUDLR_DEVICE Span(const int64_t* offsets, int64_t samples, int64_t slot) {
    sample = bisect(1, samples, [&](int64_t i) { return offsets[i] / kSide + i > slot; }) - 1;
    begin = offsets[sample] + (slot - offsets[sample] / kSide - sample) * kSide;
    end = min_of(offsets[sample + 1], begin + kSide);
  }
  FUDLR_DEVICE int count() const { return static_cast<int>(end - begin); }
};
FUDLR_BOTH int64_t slots(int64_t rows, int64_t samples) { return rows / kSide + samples; }

}  // namespace attend
}  // namespace FUDLR_BACKEND
}  // namespace fudlr
