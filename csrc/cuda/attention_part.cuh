// The second pass of attention's derivatives: coefficients made anew from the sums of the first,
// and multiplied with rows of the other side. The equations: attention.cuh.
//
// One kernel for the output's tangents (P' V + P V'), and for the cotangents of queries (C K),
// keys (Cᵀ Q) and values (Pᵀ δ), with their derivatives (C' K + C K', C'ᵀ Q + Cᵀ Q', Pᵀ δ' + P'ᵀ
// δ): always one or two coefficients a pair of query and key. Where keys own the block, tiles are
// turned over: rows are keys.
#pragma once

#include "cuda/attention.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {
namespace attend {

using gpu::AttentionPart;

// The sums of the tile's queries, 0 where there is none.
template <typename Real>
FUDLR_DEVICE void load_sums(const gpu::Attention& all, const gpu::AttentionAlong& along,
                            const Meeting& at, Real (&sums)[4][kSide]) {
  if (threadIdx.x >= kSide) return;
  const int64_t row = (at.first_query + threadIdx.x) * at.k + at.j;
#pragma unroll
  for (int which = 0; which < 4; ++which) {
    sums[which][threadIdx.x] = static_cast<int>(threadIdx.x) < at.queries
                                   ? sums_of<Real>(all, along, which)[row * all.heads + at.head]
                                   : Real(0);
  }
}

// The tile's coefficients: of what is multiplied first, and second.
template <typename Real>
FUDLR_DEVICE void make_coefficients(const gpu::Attention& all, const gpu::AttentionAlong& along,
                                    AttentionPart part, const Meeting& at, int64_t place,
                                    const Real (&sums)[4][kSide], const Board<Real>& board,
                                    Share<Real>& first, Share<Real>& second) {
  const bool turned = part == AttentionPart::keys || part == AttentionPart::values;
  const bool centred = part == AttentionPart::queries || part == AttentionPart::keys;
  const Real scale = static_cast<Real>(all.scale);
  const unsigned steps = steps_of(along, centred);
  const bool moves = (steps >> kMoved & 1) != 0;
  Share<Real>& p = second;
  Share<Real> y;
  clear(y);
  take_steps<Real>(all, along, at, turned, steps, board, first, [&](int step) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int row = share_row() + i, column = share_column() + j;
        const int query = turned ? column : row;
        Real& x = first[i][j];
        if (step == kScores) {
          const bool seen = place + (turned ? row : column) < board.limits[query];
          p[i][j] = seen ? exp(scale * x - sums[0][query]) : Real(0);
          x = centred && !moves ? -sums[3][query] : Real(0);
        } else if (step == kMoved) {
          x = scale * x - sums[1][query];
          if (centred) y[i][j] = x, x = 0;
        } else if (step == kPrimal) {
          const Real centre = x - sums[2][query];
          x = y[i][j] * centre - sums[3][query];
          y[i][j] = centre;
        }
      }
    }
  });
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      // What a query does not see has no part, not even where its numbers are infinite.
      const Real share = p[i][j];
      const Real both = share == Real(0) ? Real(0) : share * first[i][j];
      const Real alone = share == Real(0) ? Real(0) : share * y[i][j];
      first[i][j] = centred ? scale * both : part == AttentionPart::values ? share : both;
      second[i][j] = centred ? scale * alone : part == AttentionPart::values ? both : share;
    }
  }
}

// What the coefficients are multiplied with, the first ones (0) and the second ones (1).
FUDLR_DEVICE Rows factor_of(const gpu::Attention& all, const gpu::AttentionAlong& along,
                            AttentionPart part, const Meeting& at, int which) {
  switch (part) {
    case AttentionPart::output:
      return at.of_key(which == 0 ? all.in.v : along.tangents.v, which == 0);
    case AttentionPart::queries:
      return at.of_key(which == 0 ? all.in.k : along.tangents.k, which == 0);
    case AttentionPart::keys:
      return at.of_query(which == 0 ? all.in.q : along.tangents.q, which == 0);
    default:
      return at.of_query(which == 0 ? along.grads : along.delta, which == 1);
  }
}

// The first of a sample's queries that sees the key at this place of it.
FUDLR_DEVICE int64_t first_seeing(const int64_t* limits, int64_t queries, int64_t place) {
  int64_t low = 0, high = queries;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (limits[middle] > place) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace attend

template <typename Real>
FUDLR_KERNEL(attend::kThreads, 1)
attention_part_kernel(gpu::Attention all, gpu::AttentionAlong along, gpu::AttentionPart part,
                      gpu::OutLines out) {
  using namespace attend;
  FUDLR_ATTENTION_BOARD(Real);
  FUDLR_SHARED(Real, sums, [4][kSide]);
  const bool by_key = part == AttentionPart::keys || part == AttentionPart::values;
  const int factors = along.tangents.q.data == nullptr ? 1 : 2;
  const int width = static_cast<int>(all.width), k = static_cast<int>(along.k);
  const int group = static_cast<int>(all.heads / all.key_heads);
  const int heads = static_cast<int>(by_key ? all.key_heads : all.heads);
  const int64_t rows = by_key ? all.keys : all.queries;
  const int64_t* offsets = by_key ? all.key_offsets : all.query_offsets;
  if (*all.bad != 0) return fill_with_nan<Real>(all.number, out, rows * k, all.width * heads);
  for (int64_t unit = blockIdx.x; unit < slots(rows, all.samples) * k * heads; unit += gridDim.x) {
    const int head = static_cast<int>(unit % heads), j = static_cast<int>(unit / heads % k);
    const Span own(offsets, all.samples, unit / heads / k);
    if (own.count() <= 0) continue;
    const int64_t first_query = all.query_offsets[own.sample];
    const int64_t first_key = all.key_offsets[own.sample];
    const int64_t queries = all.query_offsets[own.sample + 1] - first_query;
    // Of the other side: queries from the first that sees one of these keys on, or all keys seen.
    const int64_t from =
        by_key ? first_seeing(all.limits + first_query, queries, own.begin - first_key) : 0;
    const int64_t to = by_key ? queries : all.limits[own.end - 1];
    for (int column = 0; column < width; column += kChunks<Real> * kSide) {
      Share<Real> results[kChunks<Real>];
#pragma unroll
      for (int c = 0; c < kChunks<Real>; ++c) clear(results[c]);
      for (int each = 0; each < (by_key ? group : 1); ++each) {
        for (int64_t other = from; other < to; other += kSide) {
          const int others = up_to_side(to - other);
          const Meeting at{by_key ? first_query + other : own.begin,
                           by_key ? own.begin : first_key + other,
                           by_key ? others : own.count(),
                           by_key ? own.count() : others,
                           by_key ? head * group + each : head,
                           by_key ? head : head / group,
                           j,
                           k,
                           width};
          load_limits(all, at.first_query, at.queries, board);
          load_sums(all, along, at, sums);  // read after a barrier of the first product
          Share<Real> first, second;
          make_coefficients(all, along, part, at, at.first_key - first_key, sums, board, first,
                            second);
#pragma unroll 1
          for (int which = 0; which < factors; ++which) {
            mix(all.number, first, own.count(), factor_of(all, along, part, at, which), column,
                width, board, results);
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
#pragma unroll
              for (int l = 0; l < kEach; ++l) first[i][l] = second[i][l];
            }
          }
        }
      }
      const Real one[kEach] = {1, 1, 1, 1};
      put(all.number, results, one, own.count(),
          (own.begin * k + j) * out.stride + static_cast<int64_t>(head) * width, out.stride * k,
          column, width, out.data);
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
