// P = softmax(scale Q Kᵀ), O = P V for samples of unequal length, with its derivative along k
// tangents, its backward, and the backward's derivative.
//
// With S' = scale (Q' Kᵀ + Q K'ᵀ) and a = Σ P S' over a row: P' = P (S' - a), O' = P' V + P V'.
// Backward, with D = δ Vᵀ and c = Σ D P: C = scale P (D - c), and the cotangents are C K, Cᵀ Q,
// Pᵀ δ. Its derivative, D and c those of the primal δ: D' = δ' Vᵀ + δ V'ᵀ, c' = Σ D' P + D P',
// C' = scale (P' (D - c) + P (D' - c')), and the product rule on the three products.
//
// Who does what. A block owns up to 64 rows of one sample and head (of one tangent), queries or,
// for the cotangents of keys and values, keys; it goes through the other side's rows that the mask
// leaves it in tiles of 64 × 64, a key's through all query heads of its group. attention_kernel
// takes one pass with a running maximum (Milakov and Gimelshein 2018). Derivatives take two: the
// first leaves log Σ exp, a, c and c' of each query, the second makes P and the coefficients anew
// and multiplies them. A plain tiled version, in fused multiply-adds for all dtypes.
//
// What is kept where. Scores and coefficients: a thread's 4 × 4 of a tile in registers,
// coefficients in shared memory as well while they are multiplied; nothing of the size of P
// anywhere. Results: 128 columns (64 in double) in registers over the whole pass; wider heads pass
// once for each 128. Four sums a query, head and tangent in global memory. 16-bit numbers are float
// from shared memory on.
//
// Order of reduction. Along a width from left to right, tiles in order, in a tile the other side's
// rows in order, a group's heads in order; the sums of a row by 16 threads, then halves first.
// Fixed by the sizes alone; no atomics, but on the flag that offsets make no sense.
//
// Must move: each array once, 4 or 2 bytes a number. Must do, in products of 2 · width operations a
// pair of query and key seen and head: 2 for the output, 8 for a tangent (3 for sums), 10 for a
// backward (2 for sums, 3, 3, 2), 27 for its derivative (6, 8, 8, 5). A sample of T positions and
// heads of 64 has T² / 2 · 256 operations for 4 · T · 256 bytes, T / 8 a byte: from T = 160 on more
// than the 20 at which an H100 waits for multiply-adds, 67e12 a second. Below, for memory: bytes /
// 3.35e12 s. Tiles ask L2 for 512 bytes a number of depth and 8,192 operations, 16 a byte, for
// which 67e12 want 4.2e12 bytes a second.
#pragma once

#include "cuda/attention_tile.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {

#define FUDLR_ATTENTION_BOARD(Real)                                     \
  FUDLR_SHARED(Real, left, [attend::kDepth<Real>][attend::kSide + 4]);  \
  FUDLR_SHARED(Real, right, [attend::kDepth<Real>][attend::kSide + 4]); \
  FUDLR_SHARED(Real, coefficients, [attend::kSide][attend::kSide + 4]); \
  FUDLR_SHARED(int64_t, limits, [attend::kSide]);                       \
  const attend::Board<Real> board { left, right, coefficients, limits }

namespace attend {

template <typename Real>
FUDLR_DEVICE Real nothing() {  // exp of it is 0
  return static_cast<Real>(__int_as_float(static_cast<int>(0xff800000u)));
}

// The sums over what a query sees, [queries · k, heads] each: log Σ exp, a, c of the primal, c.
template <typename Real>
FUDLR_DEVICE Real* sums_of(const gpu::Attention& all, const gpu::AttentionAlong& along, int which) {
  return static_cast<Real*>(along.sums) + which * (all.queries * along.k * all.heads);
}

// How many keys each of the `count` queries from `first` on sees; none where there is no query.
template <typename Real>
FUDLR_DEVICE void load_limits(const gpu::Attention& all, int64_t first, int count,
                              const Board<Real>& board) {
  __syncthreads();  // those of before have been read
  if (threadIdx.x < kSide) {
    board.limits[threadIdx.x] =
        static_cast<int>(threadIdx.x) < count ? all.limits[first + threadIdx.x] : 0;
  }
  __syncthreads();
}

// Running sums of the thread's rows, in proportion to exp(-most).
template <typename Real>
struct Running {
  Real most[kEach], total[kEach], keep[kEach];

  FUDLR_DEVICE Running() {
#pragma unroll
    for (int i = 0; i < kEach; ++i) most[i] = nothing<Real>(), total[i] = 0;
  }
  // Products with keys from `key` of their sample on become exp(score - most), 0 where a query does
  // not see the key; what was summed before is to be multiplied with keep.
  FUDLR_DEVICE void soften(Real scale, int64_t key, const int64_t (&limits)[kSide],
                           Share<Real>& share) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t seen = limits[share_row() + i] - key;
      Real now = most[i];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        share[i][j] = share_column() + j < seen ? scale * share[i][j] : nothing<Real>();
        now = share[i][j] > now ? share[i][j] : now;
      }
      now = row_max(now);
      keep[i] = most[i] == now ? Real(1) : exp(most[i] - now);
      most[i] = now;
      total[i] *= keep[i];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        share[i][j] = share_column() + j < seen ? exp(share[i][j] - now) : Real(0);
        total[i] += share[i][j];
      }
    }
  }
};

// What one tile is about: rows of queries and of keys, of one head and tangent.
struct Meeting {
  int64_t first_query, first_key;
  int queries, keys, head, key_head, j, k, width;

  FUDLR_DEVICE Rows of_query(const gpu::Lines& lines, bool primal) const {
    return rows_of(lines, first_query, queries, primal ? 1 : k, primal ? 0 : j,
                   static_cast<int64_t>(head) * width);
  }
  FUDLR_DEVICE Rows of_key(const gpu::Lines& lines, bool primal) const {
    return rows_of(lines, first_key, keys, primal ? 1 : k, primal ? 0 : j,
                   static_cast<int64_t>(key_head) * width);
  }
};

// The products that coefficients are made of: Q Kᵀ, S' / scale, the primal δ Vᵀ, and D.
enum Step { kScores, kMoved, kPrimal, kPulled, kSteps };

FUDLR_DEVICE unsigned steps_of(const gpu::AttentionAlong& along, bool pulls) {
  const bool moves = along.tangents.q.data != nullptr;
  return 1u << kScores | (moves ? 1u << kMoved : 0) | (moves && pulls ? 1u << kPrimal : 0) |
         (pulls ? 1u << kPulled : 0);
}

// Adds the products of the wanted steps to x, one after the other, and calls after(step) each time.
// Queries are the tile's rows, or where it is turned its columns.
template <typename Real, typename After>
FUDLR_DEVICE void take_steps(const gpu::Attention& all, const gpu::AttentionAlong& along,
                             const Meeting& at, bool turned, unsigned wanted,
                             const Board<Real>& board, Share<Real>& x, After after) {
  clear(x);
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    if ((wanted >> step & 1) == 0) continue;
    const bool values = step >= kPrimal, primal = step == kScores || step == kPrimal;
    const Rows query = at.of_query(step == kScores   ? all.in.q
                                   : step == kMoved  ? along.tangents.q
                                   : step == kPrimal ? along.delta
                                                     : along.grads,
                                   primal);
    const Rows key = at.of_key(values ? all.in.v : all.in.k, true);
    const Rows other_query = at.of_query(values ? along.delta : all.in.q, true);
    const Rows other_key = at.of_key(values ? along.tangents.v : along.tangents.k, false);
    const bool moves = (wanted >> kMoved & 1) != 0;
    multiply(all.number, turned ? Pair{key, query} : Pair{query, key},
             turned ? Pair{other_key, other_query} : Pair{other_query, other_key},
             moves && !primal ? 2 : 1, at.width, board, x);
    after(step);
  }
}

}  // namespace attend

// A thread looks at one offset of each kind and one limit at a time; *bad is 0 before.
FUDLR_KERNEL(attend::kThreads, 1)
check_attention_kernel(gpu::Attention all, int* bad) {
  const int64_t n = all.samples,
                start = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t *queries = all.query_offsets, *keys = all.key_offsets, *limits = all.limits;
  bool wrong = start == 0 && (queries[0] != 0 || queries[n] != all.queries || keys[0] != 0 ||
                              keys[n] != all.keys || (n == 0 && all.queries > 0));
  for (int64_t i = start; i < n; i += step) {
    wrong |= queries[i] > queries[i + 1] || keys[i] > keys[i + 1];
  }
  for (int64_t t = start; t < all.queries && n > 0; t += step) {
    const int64_t i = segment_of(queries, n, t);  // one of the n, whatever the offsets say
    const int64_t floor = t == 0 || t == queries[i] ? 1 : limits[t - 1];
    wrong |= limits[t] < floor || limits[t] > keys[i + 1] - keys[i];
  }
  if (wrong) atomicOr(bad, 1);
}

template <typename Real>
FUDLR_KERNEL(attend::kThreads, 1)
attention_kernel(gpu::Attention all, gpu::OutLines out) {
  using namespace attend;
  FUDLR_ATTENTION_BOARD(Real);
  const int width = static_cast<int>(all.width);
  if (*all.bad != 0) return fill_with_nan<Real>(all.number, out, all.queries, all.heads * width);
  for (int64_t unit = blockIdx.x; unit < slots(all.queries, all.samples) * all.heads;
       unit += gridDim.x) {
    const int64_t head = unit % all.heads, key_column = head / (all.heads / all.key_heads) * width;
    const Span own(all.query_offsets, all.samples, unit / all.heads);
    if (own.count() <= 0) continue;
    load_limits(all, own.begin, own.count(), board);
    const int64_t first_key = all.key_offsets[own.sample], end = all.limits[own.end - 1];
    const Rows q = rows_of(all.in.q, own.begin, own.count(), 1, 0, head * width);
    for (int column = 0; column < width; column += kChunks<Real> * kSide) {
      Running<Real> running;
      Share<Real> sums[kChunks<Real>];
#pragma unroll
      for (int c = 0; c < kChunks<Real>; ++c) clear(sums[c]);
      for (int64_t key = 0; key < end; key += kSide) {
        const int count = up_to_side(end - key);
        const Pair pair{q, rows_of(all.in.k, first_key + key, count, 1, 0, key_column)};
        Share<Real> p;
        clear(p);
        multiply(all.number, pair, pair, 1, width, board, p);
        running.soften(static_cast<Real>(all.scale), key, limits, p);
#pragma unroll
        for (int c = 0; c < kChunks<Real>; ++c) {
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
#pragma unroll
            for (int j = 0; j < kEach; ++j) sums[c][i][j] *= running.keep[i];
          }
        }
        const Rows values = rows_of(all.in.v, first_key + key, count, 1, 0, key_column);
        mix(all.number, p, own.count(), values, column, width, board, sums);
      }
      Real share[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) share[i] = Real(1) / row_sum(running.total[i]);
      put(all.number, sums, share, own.count(), own.begin * out.stride + head * width, out.stride,
          column, width, out.data);
    }
  }
}

template <typename Real>
FUDLR_KERNEL(attend::kThreads, 1)
attention_sums_kernel(gpu::Attention all, gpu::AttentionAlong along) {
  using namespace attend;
  FUDLR_ATTENTION_BOARD(Real);
  if (*all.bad != 0) return;
  const int k = static_cast<int>(along.k), heads = static_cast<int>(all.heads);
  const int group = static_cast<int>(all.heads / all.key_heads);
  const Real scale = static_cast<Real>(all.scale);
  const unsigned steps = steps_of(along, along.grads.data != nullptr);
  for (int64_t unit = blockIdx.x; unit < slots(all.queries, all.samples) * k * heads;
       unit += gridDim.x) {
    const int head = static_cast<int>(unit % heads), j = static_cast<int>(unit / heads % k);
    const Span own(all.query_offsets, all.samples, unit / heads / k);
    if (own.count() <= 0) continue;
    load_limits(all, own.begin, own.count(), board);
    const int64_t first_key = all.key_offsets[own.sample], end = all.limits[own.end - 1];
    Running<Real> running;
    // Of S' less about its mean, that of the first tile, of the primal D, and of D + S' D: of two
    // numbers that may be much larger c is what is left.
    Real sums[3][kEach] = {}, about[kEach] = {};
    for (int64_t key = 0; key < end; key += kSide) {
      const Meeting at{own.begin,
                       first_key + key,
                       own.count(),
                       up_to_side(end - key),
                       head,
                       head / group,
                       j,
                       k,
                       static_cast<int>(all.width)};
      Share<Real> p, x, y;
      take_steps<Real>(all, along, at, false, steps, board, x, [&](int step) {
        if (step == kScores) running.soften(scale, key, limits, x);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          Real sum = 0;
#pragma unroll
          for (int l = 0; l < kEach; ++l) {
            if (step == kScores) p[i][l] = x[i][l], x[i][l] = 0;
            if (step == kMoved) x[i][l] *= scale;
            sum += p[i][l] * x[i][l];
          }
          if (step == kScores) {
#pragma unroll
            for (int which = 0; which < 3; ++which) sums[which][i] *= running.keep[i];
          } else if (step == kPulled) {
            sums[2][i] += sum;
          } else if (step == kPrimal) {
            sums[1][i] += sum;
#pragma unroll
            for (int l = 0; l < kEach; ++l) x[i][l] *= y[i][l];
          } else {
            if (key == 0) about[i] = row_sum(sum) / row_sum(running.total[i]);
#pragma unroll
            for (int l = 0; l < kEach; ++l) {
              y[i][l] = x[i][l] - about[i], x[i][l] = 0;
              sums[0][i] += p[i][l] * y[i][l];
            }
          }
        }
      });
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Real total = row_sum(running.total[i]), share = Real(1) / total;
      const Real a = share * row_sum(sums[0][i]), primal = share * row_sum(sums[1][i]);
      const Real c = share * row_sum(sums[2][i]) - a * primal;
      if (share_row() + i < own.count() && share_column() == 0) {
        const int64_t at = ((own.begin + share_row() + i) * k + j) * heads + head;
        sums_of<Real>(all, along, 0)[at] = running.most[i] + log(total);
        sums_of<Real>(all, along, 1)[at] = about[i] + a;
        sums_of<Real>(all, along, 2)[at] = primal;
        sums_of<Real>(all, along, 3)[at] = c;
      }
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
