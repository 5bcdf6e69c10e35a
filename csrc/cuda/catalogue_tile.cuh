// A tile of 64 users × 64 items: their scores s = scale · h · e in shared memory, −∞ where an item
// was seen or is none, and products of such a tile with rows of another matrix.
//
// Who does what. 128 threads. A product is made in slabs of 16 numbers (8 doubles) of depth, which
// come to registers by 128-bit loads while the slab before is multiplied, and go to shared memory
// turned over, so that a thread reads its 8 rows and 4 columns as vectors: 32 sums in registers.
// The tensor cores' way to the scores: catalogue_mma.cuh.
#pragma once

#include "cuda/block.cuh"
#include "cuda/catalogue.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

using gpu::Matrix;

constexpr int kSide = 64;
constexpr int kTileThreads = 128;
constexpr int kTall = 8, kWide = 4;  // a thread's share of a tile
constexpr int kAcross = kSide / kWide;

template <typename Real>
constexpr int kDepth = 64 / static_cast<int>(sizeof(Real));
template <typename Real>
using Slab = Real[kDepth<Real>][kSide + 4];
template <typename Real>
using Tile = Real[kSide][kSide + 1];
template <typename Real>
using Share = Real[kTall][kWide];

FUDLR_DEVICE int share_row() { return static_cast<int>(threadIdx.x) / kAcross * kTall; }
FUDLR_DEVICE int share_column() { return static_cast<int>(threadIdx.x) % kAcross * kWide; }

template <typename Real>
FUDLR_DEVICE Real no_score() {
  return static_cast<Real>(__int_as_float(static_cast<int>(0xff800000u)));
}

template <typename In>
FUDLR_DEVICE Matrix<Sum<In>> users_of(const gpu::Catalogue& c) {
  return {static_cast<const Sum<In>*>(c.users), c.user_stride, c.n, c.width};
}
template <typename In>
FUDLR_DEVICE Matrix<In> items_of(const gpu::Catalogue& c) {
  return {static_cast<const In*>(c.items), c.item_stride, c.m, c.width};
}

// One thread's part of a slab on its way from global to shared memory, zero outside the matrix.
// kTurned: kSide rows and kDepth columns, turned over; else kDepth rows and kSide columns.
template <typename In, bool kTurned>
struct SlabPart {
  using Real = Sum<In>;
  static constexpr int V = kVector<In>;
  static constexpr int kEach = kSide * kDepth<Real> / V / kTileThreads;
  static constexpr int kVectors = kSide / V;  // of a row that is not turned over
  alignas(16) In numbers[kEach][V];

  FUDLR_DEVICE void load(const Matrix<In>& from, int64_t first_row, int64_t first_column) {
    const bool aligned = is_aligned(from.data) && from.stride % V == 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int vector = e * kTileThreads + threadIdx.x;
      const int64_t row = first_row + (kTurned ? vector % kSide : vector / kVectors);
      const int64_t column = first_column + (kTurned ? vector / kSide : vector % kVectors) * V;
      const int64_t count = row < from.rows ? from.columns - column : 0;
      const int64_t at = count > 0 ? row * from.stride + column : 0;
      load_some(from.data + at, count, aligned, numbers[e]);
    }
  }
  FUDLR_DEVICE void store(Slab<Real>& to) const {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int vector = e * kTileThreads + threadIdx.x;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Real value = widen(numbers[e][v]);
        if (kTurned) {
          to[vector / kSide * V + v][vector % kSide] = value;
        } else {
          to[vector / kVectors][vector % kVectors * V + v] = value;
        }
      }
    }
  }
};

template <typename Real>
FUDLR_DEVICE void clear(Share<Real>& share) {
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) share[i][j] = 0;
  }
}

template <typename Real>
FUDLR_DEVICE void add_outer(const Real (&x)[kTall], const Real (&y)[kWide], Share<Real>& share) {
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) share[i][j] += x[i] * y[j];
  }
}

// share = Σ_k a_{first_a + i, k} b_{first_b + j, k} of the tile's rows i and columns j. Passes a
// barrier before it writes shared memory.
template <typename A, typename B>
FUDLR_DEVICE void multiply_rows(const Matrix<A>& a, int64_t first_a, const Matrix<B>& b,
                                int64_t first_b, Slab<Sum<A>>& left, Slab<Sum<A>>& right,
                                Share<Sum<A>>& share) {
  using Real = Sum<A>;
  clear(share);
  SlabPart<A, true> from_a;
  SlabPart<B, true> from_b;
  from_a.load(a, first_a, 0);
  from_b.load(b, first_b, 0);
  int64_t k = 0;
  do {
    __syncthreads();  // the slabs of before have been read
    from_a.store(left);
    from_b.store(right);
    __syncthreads();  // these are there
    k += kDepth<Real>;
    if (k < a.columns) {
      from_a.load(a, first_a, k);
      from_b.load(b, first_b, k);
    }
#pragma unroll
    for (int d = 0; d < kDepth<Real>; ++d) {
      alignas(16) Real x[kTall];
      alignas(16) Real y[kWide];
      load_vectors(&left[d][share_row()], x);
      load_vectors(&right[d][share_column()], y);
      add_outer(x, y, share);
    }
  } while (k < a.columns);
}

// −∞ for what the tile's users have seen of its items; a thread walks down one user's list.
template <typename Real>
FUDLR_DEVICE void hide_seen(const gpu::Catalogue& c, int64_t user, int64_t item, Tile<Real>& tile) {
  const int64_t i = user + threadIdx.x;
  if (threadIdx.x >= kSide || i >= c.n) return;
  const int64_t begin = i * c.m + item;
  const int64_t end = i * c.m + min_of(c.m, item + kSide);
  const int64_t stop = c.seen_offsets[i + 1];
  int64_t at = bisect(c.seen_offsets[i], stop, [&](int64_t j) { return c.seen[j] >= begin; });
  for (; at < stop && c.seen[at] < end; ++at)
    tile[threadIdx.x][c.seen[at] - begin] = no_score<Real>();
}

// The scores of the users from `user` and the items from `item` on into the tile, by fused
// multiply-adds.
template <typename In>
struct Scorer {
  FUDLR_DEVICE void operator()(const gpu::Catalogue& c, int64_t user, int64_t item,
                               Slab<Sum<In>>& left, Slab<Sum<In>>& right,
                               Tile<Sum<In>>& tile) const {
    using Real = Sum<In>;
    Share<Real> share;
    multiply_rows(users_of<In>(c), user, items_of<In>(c), item, left, right, share);
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const int column = share_column() + j;
        tile[share_row() + i][column] =
            item + column < c.m ? static_cast<Real>(c.scale) * share[i][j] : no_score<Real>();
      }
    }
  }
};

// Ends with a barrier: the tile is there for everybody.
template <typename In>
FUDLR_DEVICE void score_tile(const gpu::Catalogue& c, const Scorer<In>& scorer, int64_t user,
                             int64_t item, Slab<Sum<In>>& left, Slab<Sum<In>>& right,
                             Tile<Sum<In>>& tile) {
  scorer(c, user, item, left, right, tile);
  __syncthreads();
  if (c.seen == nullptr) return;
  hide_seen(c, user, item, tile);
  __syncthreads();
}

// out_ij = keep_i out_ij + Σ_k t_ik b_{first + k, j} for the block's kSide rows i of which `rows`
// exist, all columns j of b, and t_ik the tile's number at (i, k), or at (k, i) where it is turned;
// out [rows, columns of b] is nobody else's. start: there is no out yet. keep null: all ones.
// Passes a barrier before it reads the tile and writes the slab.
template <bool kTurned, typename B>
FUDLR_DEVICE void mix(const Tile<Sum<B>>& tile, const Matrix<B>& b, int64_t first,
                      const Sum<B>* keep, bool start, Slab<Sum<B>>& slab, int64_t rows,
                      Sum<B>* out) {
  using Real = Sum<B>;
  for (int64_t column = 0; column < b.columns; column += kSide) {
    Share<Real> share;
    clear(share);
    for (int k = 0; k < kSide; k += kDepth<Real>) {
      SlabPart<B, false> part;
      part.load(b, first + k, column);
      __syncthreads();  // the slab of before has been read
      part.store(slab);
      __syncthreads();  // this one is there
#pragma unroll
      for (int d = 0; d < kDepth<Real>; ++d) {
        Real x[kTall];
        alignas(16) Real y[kWide];
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
          x[i] = kTurned ? tile[k + d][share_row() + i] : tile[share_row() + i][k + d];
        }
        load_vectors(&slab[d][share_column()], y);
        add_outer(x, y, share);
      }
    }
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
      const int row = share_row() + i;
      const Real kept = keep == nullptr ? Real(1) : keep[row];
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const int64_t at = column + share_column() + j;
        if (row < rows && at < b.columns) {
          Real& to = out[row * b.columns + at];
          to = start ? share[i][j] : kept * to + share[i][j];
        }
      }
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
