// A softmax over a catalogue, p_i = softmax(scale · h_i Eᵀ) of users i over M items: p C and
// log Σ exp, online (Milakov and Gimelshein 2018); its backward; and the highest scores.
//
// Who does what. A block owns 64 users and a chunk of 1,024 items (catalogue_mean, catalogue_top),
// 64 users and a part of the items (gradient in the users), or 64 items and a part of the users
// (gradients in items and values), and goes through them in tiles of 64 × 64 scores, which exist in
// shared memory alone: no n × M matrix anywhere. A plain tiled version: sums of a block lie in its
// own part of a scratch array, in L2, and are read and written once a tile; each gradient scores
// anew; a short list of highest scores is kept by one thread a user.
//
// Order of reduction. Within a tile by the thread's depth order or the tensor core's; tiles in
// order; chunks and parts in order, in float64, by a second kernel: fixed by the sizes alone. Of
// two equal scores the lower item comes first. No atomics.
//
// Must move: E once for every 64 users, h once a chunk, the results once; 2 n M w operations for
// the scores and 2 n M c for p C, n M exponentials; backward the same and 2 n M w for each of the
// gradients in h and E. With 64 users a tile that is 32 operations a byte of float32 items, above
// the 20 at which an H100 waits for memory: 2 n M (w + c) / 67e12 s in float32. Items of 16 bits
// have their scores from tensor cores, in parts (catalogue_mma.cuh): 6 n M w / 990e12 s in
// bfloat16, and twice that in float16.
#pragma once

#include "cuda/catalogue_mma.cuh"
#include "cuda/catalogue_tile.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int64_t kItemChunk = 1024;

FUDLR_DEVICE bool is_bad(const gpu::Catalogue& c) { return c.bad != nullptr && *c.bad != 0; }

// The shared memory of a block, and what scores its tiles.
#define FUDLR_CATALOGUE_BOARD(In)                                                    \
  FUDLR_SHARED(Sum<In>, left, [kDepth<Sum<In>>][kSide + 4]);                         \
  FUDLR_SHARED(Sum<In>, right, [kDepth<Sum<In>>][kSide + 4]);                        \
  FUDLR_SHARED(Sum<In>, tile, [kSide][kSide + 1]);                                   \
  constexpr int kStagedRows = sizeof(In) == 2 ? kSide : 1;                           \
  FUDLR_SHARED(Bf16, staged, [kParts + kItemParts<In>][kStagedRows][kMmaDepth + 8]); \
  const Scorer<In> scorer = make_scorer<In>(staged)

template <typename In, int N>
FUDLR_DEVICE Scorer<In> make_scorer(Bf16 (&staged)[kParts + kItemParts<In>][N][kMmaDepth + 8]) {
  if constexpr (sizeof(In) == 2) {
    return Scorer<In>{staged, staged + kParts};
  } else {
    return {};
  }
}

// Scores become exp(s − most) with the user's largest score so far; two threads a user. keep is
// what the sums of before must be multiplied with.
template <typename Real>
FUDLR_DEVICE void soften(Tile<Real>& tile, Real* most, Real* total, Real* keep) {
  const int row = threadIdx.x / 2;
  const int half = threadIdx.x % 2;
  const Real before = half == 0 ? most[row] : no_score<Real>();
  Real now = before;
  for (int j = half; j < kSide; j += 2) now = tile[row][j] > now ? tile[row][j] : now;
  const Real theirs = __shfl_xor_sync(kAllLanes, now, 1);
  now = theirs > now ? theirs : now;
  Real sum = 0;
  for (int j = half; j < kSide; j += 2) {
    const Real score = tile[row][j];
    const Real p = score == no_score<Real>() ? Real(0) : exp(score - now);
    tile[row][j] = p;
    sum += p;
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  if (half == 0) {
    const Real factor = before == now ? Real(1) : exp(before - now);
    most[row] = now;
    keep[row] = factor;
    total[row] = total[row] * factor + sum;
  }
}

// Of every chunk and user: states = the largest score m and Σ exp(s − m); sums = Σ exp(s − m) C.
template <typename In>
FUDLR_KERNEL(kTileThreads, 2)
catalogue_mean_kernel(gpu::Catalogue c, Matrix<Sum<In>> values, Sum<In>* states, Sum<In>* sums) {
  using Real = Sum<In>;
  FUDLR_CATALOGUE_BOARD(In);
  FUDLR_SHARED(Real, most, [kSide]);
  FUDLR_SHARED(Real, total, [kSide]);
  FUDLR_SHARED(Real, keep, [kSide]);
  if (is_bad(c)) return;
  const int64_t chunks = (c.m + kItemChunk - 1) / kItemChunk;
  const int64_t users = (c.n + kSide - 1) / kSide;
  for (int64_t unit = blockIdx.x; unit < users * chunks; unit += gridDim.x) {
    const int64_t user = unit / chunks * kSide;
    const int64_t begin = unit % chunks * kItemChunk;
    const int64_t end = min_of(c.m, begin + kItemChunk);
    const int64_t place = unit % chunks * c.n + user;
    if (threadIdx.x < kSide) {
      most[threadIdx.x] = no_score<Real>();
      total[threadIdx.x] = 0;
    }
    for (int64_t item = begin; item < end; item += kSide) {
      score_tile<In>(c, scorer, user, item, left, right, tile);
      soften(tile, most, total, keep);
      __syncthreads();
      mix<false>(tile, values, item, keep, item == begin, left, c.n - user,
                 sums + place * values.columns);
    }
    if (threadIdx.x < kSide && user + threadIdx.x < c.n) {
      states[(place + threadIdx.x) * 2] = most[threadIdx.x];
      states[(place + threadIdx.x) * 2 + 1] = total[threadIdx.x];
    }
  }
}

// Joins the chunks: a thread for each user and column, and one more for log Σ exp.
template <typename Real>
FUDLR_KERNEL(256, 2)
catalogue_mean_finish_kernel(const int* bad, const Real* states, const Real* sums, int64_t chunks,
                             int64_t n, int64_t columns, Real* mean, Real* lse) {
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       e < n * (columns + 1); e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t user = e / (columns + 1);
    const int64_t column = e % (columns + 1);
    Real& to = column == columns ? lse[user] : mean[user * columns + column];
    if (bad != nullptr && *bad != 0) {
      to = quiet_nan<Real>();
      continue;
    }
    double most = no_score<double>();
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double theirs = states[(chunk * n + user) * 2];
      most = theirs > most ? theirs : most;
    }
    double total = 0, sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t at = chunk * n + user;
      const double theirs = states[at * 2];
      const double factor = theirs == most ? 1 : exp(theirs - most);
      total += factor * static_cast<double>(states[at * 2 + 1]);
      if (column < columns) sum += factor * static_cast<double>(sums[at * columns + column]);
    }
    to = static_cast<Real>(column == columns ? most + log(total) : sum / total);
  }
}

// What the backward passes read: g [n, c], C [M, c] or nothing, shift [n] and lse [n].
template <typename Real>
struct Pulled {
  Matrix<Real> weights, values;
  const Real *shift, *lse;
};

// A tile's p, or its slopes ∂s = p (g · C − shift); 0 where there is no user.
template <typename In>
FUDLR_DEVICE void gradient_tile(const gpu::Catalogue& c, const Scorer<In>& scorer,
                                const Pulled<Sum<In>>& from, bool slopes, int64_t user,
                                int64_t item, Slab<Sum<In>>& left, Slab<Sum<In>>& right,
                                Tile<Sum<In>>& tile) {
  using Real = Sum<In>;
  score_tile<In>(c, scorer, user, item, left, right, tile);
  Share<Real> slope;
  if (slopes && from.values.columns > 0) {
    multiply_rows(from.weights, user, from.values, item, left, right, slope);
  } else {
    clear(slope);
  }
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
    const bool here = user + share_row() + i < c.n;
    const int64_t u = here ? user + share_row() + i : c.n - 1;
    const Real lse = from.lse[u];
    const Real shift = slopes ? from.shift[u] : Real(0);
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      Real& at = tile[share_row() + i][share_column() + j];
      const Real p = here && at != no_score<Real>() ? exp(at - lse) : Real(0);
      at = slopes ? p * (slope[i][j] - shift) : p;
    }
  }
}

// Units (tile of one side, part of the other side's tiles); work [part, row, column].
template <typename In, gpu::Gradient kOf>
FUDLR_KERNEL(kTileThreads, 2)
catalogue_gradient_kernel(gpu::Catalogue c, Pulled<Sum<In>> from, int64_t parts, int64_t length,
                          Sum<In>* work) {
  constexpr bool kOfUsers = kOf == gpu::Gradient::users;
  FUDLR_CATALOGUE_BOARD(In);
  if (is_bad(c)) return;
  const int64_t rows = kOfUsers ? c.n : c.m;
  const int64_t others = kOfUsers ? c.m : c.n;
  const int64_t columns = kOf == gpu::Gradient::values ? from.weights.columns : c.width;
  const int64_t tiles = (rows + kSide - 1) / kSide;
  for (int64_t unit = blockIdx.x; unit < tiles * parts; unit += gridDim.x) {
    const int64_t row = unit / parts * kSide;
    const int64_t begin = unit % parts * length;
    const int64_t end = min_of(others, begin + length);
    Sum<In>* to = work + (unit % parts * rows + row) * columns;
    for (int64_t other = begin; other < end; other += kSide) {
      gradient_tile<In>(c, scorer, from, kOf != gpu::Gradient::values, kOfUsers ? row : other,
                        kOfUsers ? other : row, left, right, tile);
      if constexpr (kOf == gpu::Gradient::users) {
        mix<false>(tile, items_of<In>(c), other, nullptr, other == begin, left, rows - row, to);
      } else if constexpr (kOf == gpu::Gradient::items) {
        mix<true>(tile, users_of<In>(c), other, nullptr, other == begin, left, rows - row, to);
      } else {
        mix<true>(tile, from.weights, other, nullptr, other == begin, left, rows - row, to);
      }
    }
  }
}

// to[e] = scale Σ work[part, e], part after part.
template <typename Real, typename Out>
FUDLR_KERNEL(256, 2)
catalogue_gradient_finish_kernel(const int* bad, const Real* work, int64_t parts, int64_t size,
                                 double scale, Out* to) {
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < size;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += work[part * size + e];
    if (bad != nullptr && *bad != 0) sum = quiet_nan<double>();
    if constexpr (sizeof(Out) == 8) {
      to[e] = scale * sum;
    } else {
      to[e] = narrow_to<Out>(static_cast<float>(scale * sum));
    }
  }
}

// scores and items [chunk, user, k]: a chunk's highest, kept in order by a thread a user. NaN is
// never among them.
template <typename In>
FUDLR_KERNEL(kTileThreads, 2)
catalogue_top_kernel(gpu::Catalogue c, int64_t k, int64_t chunk_items, Sum<In>* scores,
                     int64_t* items) {
  using Real = Sum<In>;
  FUDLR_CATALOGUE_BOARD(In);
  const bool bad = is_bad(c);
  const int64_t chunks = (c.m + chunk_items - 1) / chunk_items;
  const int64_t users = (c.n + kSide - 1) / kSide;
  for (int64_t unit = blockIdx.x; unit < users * chunks; unit += gridDim.x) {
    const int64_t user = unit / chunks * kSide;
    const int64_t begin = unit % chunks * chunk_items;
    const int64_t end = min_of(c.m, begin + chunk_items);
    const bool mine = threadIdx.x < kSide && user + threadIdx.x < c.n;
    const int64_t list = (unit % chunks * c.n + user + threadIdx.x) * k;
    Real* best = scores + list;
    int64_t* found = items + list;
    for (int64_t at = 0; mine && at < k; ++at) {
      best[at] = bad ? quiet_nan<Real>() : no_score<Real>();
      found[at] = -1;
    }
    if (bad) continue;
    Real last = no_score<Real>();
    for (int64_t item = begin; item < end; item += kSide) {
      score_tile<In>(c, scorer, user, item, left, right, tile);
      for (int j = 0; mine && j < kSide; ++j) {
        const Real score = tile[threadIdx.x][j];
        if (!(score > last)) continue;
        int64_t at = k - 1;  // behind all that are as high: they came first
        for (; at > 0 && score > best[at - 1]; --at) {
          best[at] = best[at - 1];
          found[at] = found[at - 1];
        }
        best[at] = score;
        found[at] = item + j;
        last = best[k - 1];
      }
    }
  }
}

// One block: looks at all that is said to have been seen.
FUDLR_KERNEL(1024, 1)
check_seen_kernel(const int64_t* offsets, int64_t n, const int64_t* items, int64_t listed,
                  int64_t m, int* bad) {
  FUDLR_SHARED(int, found, [1]);
  if (threadIdx.x == 0) found[0] = offsets[0] < 0 || offsets[n] > listed;
  __syncthreads();
  bool wrong = false;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) wrong |= offsets[i] > offsets[i + 1];
  for (int64_t j = threadIdx.x; j < listed; j += blockDim.x) wrong |= items[j] < 0 || items[j] >= m;
  if (wrong) atomicOr(found, 1);
  __syncthreads();
  if (threadIdx.x == 0) *bad = found[0];
}

// keys[j] = i · m + items[j] for the user i that place j belongs to: the last one to start there or
// before. Whatever the offsets are, none is read but 0 .. n.
FUDLR_KERNEL(256, 1)
seen_keys_kernel(const int64_t* offsets, int64_t n, const int64_t* items, int64_t listed, int64_t m,
                 int64_t* keys) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; j < listed;
       j += step) {
    int64_t low = 0, high = n + 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (offsets[middle] <= j) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    keys[j] = (low - 1) * m + items[j];
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
