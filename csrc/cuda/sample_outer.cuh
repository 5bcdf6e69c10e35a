// Per-sample gradients G_i = Σ_t narrow_t wide_tᵀ (Goodfellow 2015), their products ⟨G_i, V_j⟩ and
// their weighted sums Σ_i w_i G_i, by fused multiply-adds: float32, float64, and 16-bit inputs
// where narrow has at most 8 columns. Wider ones: sample_outer_mma.cuh.
//
// Who does what. A block of 128 threads holds a tile of G: N narrow rows × 128 vectors of wide
// columns. A thread owns one vector of columns (16 bytes: 4 float, 8 16-bit numbers) and all N rows
// of it: N · V sums, in registers from the first position to the last. Per position it loads its
// own 16 bytes of wide_t, straight from global memory to registers (nobody else needs them: shared
// memory would be a detour), and N numbers of narrow_t that all threads share: those are staged,
// kStage positions at a time, in shared memory, and read as broadcasts.
//
// What happens to a finished tile. sample_grads writes it. sample_dots multiplies it with the same
// tile of every vector, in registers: G never exists in memory. grad_sum scales narrow_t by the
// weight of t's sample while staging, and treats (weighting, row) as one long list of narrow rows.
//
// Order of reduction. Positions one after the other within a chunk of kChunk positions counted from
// a sample's start (sample_dots) or within one of sum_parts() equal parts of all positions
// (grad_sum), fixed by the sizes alone; then lanes (warp_sum), warps, and chunks × tiles in order
// by a second kernel. No atomics: the same call gives the same bits, and a sample's numbers depend
// on that sample alone in sample_grads and sample_dots.
//
// Must move: T (a + b) inputs once (narrow again for each further tile of columns, wide again for
// each further tile of rows), k·a·b vectors once a block, outputs once; 2 T a b + 2 n k a b
// operations. On an H100 (3.35 TB/s, 67 TFLOP/s float32) memory is the limit up to a = 40 in
// float32 (2·a·b operations against 4·b bytes a position): T·b·4 / 3.35e12 s; above, 2·T·a·b /
// 67e12 s. With N = 16 rows a tile, wide is read a/16 times, from L2 after the first.
#pragma once

#include "cuda/block.cuh"
#include "cuda/sample_outer.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kThreads = 128;
constexpr int kStage = 32;
constexpr int64_t kChunk = 512;

// Finds the chunk that a slot stands for. Sample i's chunks have the slots from
// (offsets[i] - offsets[0]) / kChunk + i on: those of two samples never meet, and there are at most
// T / kChunk + n of them, so that a grid can be launched without knowing the lengths.
struct Chunk {
  int64_t sample, begin, end;
};
FUDLR_DEVICE int64_t first_slot(const int64_t* offsets, int64_t i) {
  return (offsets[i] - offsets[0]) / kChunk + i;
}
FUDLR_DEVICE Chunk chunk_at(const gpu::Samples& s, int64_t slot) {
  const int64_t i = bisect(1, s.n, [&](int64_t j) { return first_slot(s.offsets, j) > slot; }) - 1;
  const int64_t begin = s.offsets[i] + (slot - first_slot(s.offsets, i)) * kChunk;
  return {i, begin, min_of(s.offsets[i + 1], begin + kChunk)};
}

// The sample that a position lies in.
FUDLR_DEVICE int64_t sample_at(const gpu::Samples& s, int64_t position) {
  return segment_of(s.offsets, s.n, position);
}

// Where a thread's part of a tile lies.
struct Spot {
  int64_t row;      // the tile's first narrow row
  int64_t rows;     // of them that exist, at most N
  int64_t column;   // the thread's first wide column
  int64_t columns;  // of them that exist, at most V
};
template <typename In, int N>
FUDLR_DEVICE Spot spot_at(int64_t tile, int64_t narrow, int64_t wide) {
  const int64_t across = (wide + blockDim.x * kVector<In> - 1) / (blockDim.x * kVector<In>);
  const int64_t row = tile / across * N;
  const int64_t column = (tile % across * blockDim.x + threadIdx.x) * kVector<In>;
  return {row, min_of(N, narrow - row), column, max_of(0, min_of(kVector<In>, wide - column))};
}

// Narrow rows as they are.
template <typename In>
struct PlainRows {
  const gpu::Samples& s;
  FUDLR_DEVICE void prepare(int64_t, int64_t) {}
  FUDLR_DEVICE Sum<In> at(int64_t position, int64_t, int64_t row) const {
    return widen(static_cast<const In*>(s.narrow.data)[position * s.narrow.stride + row]);
  }
};

// Narrow row m % a, scaled by the weight in row m / a that the position's sample has.
template <typename In>
struct WeightedRows {
  const gpu::Samples& s;
  const Sum<In>* weights;  // [count, n]
  int64_t* sample_of;      // [kStage], shared

  FUDLR_DEVICE void prepare(int64_t first, int64_t count) {
    if (threadIdx.x < count) sample_of[threadIdx.x] = sample_at(s, first + threadIdx.x);
    __syncthreads();
  }
  FUDLR_DEVICE Sum<In> at(int64_t position, int64_t staged, int64_t row) const {
    const int64_t weighting = row / s.narrow.size;
    const In* narrow = static_cast<const In*>(s.narrow.data) + position * s.narrow.stride;
    return weights[weighting * s.n + sample_of[staged]] * widen(narrow[row % s.narrow.size]);
  }
};

template <typename In, int N>
FUDLR_DEVICE void add_position(const Sum<In>* staged, const In (&columns)[kVector<In>],
                               Sum<In> (&sums)[N][kVector<In>]) {
  Sum<In> wide[kVector<In>];
#pragma unroll
  for (int v = 0; v < kVector<In>; ++v) wide[v] = widen(columns[v]);
#pragma unroll
  for (int i = 0; i < N; i += kVector<Sum<In>>) {
    Sum<In> narrow[kVector<Sum<In>>];
    load_vectors(staged + i, narrow);
#pragma unroll
    for (int r = 0; r < kVector<Sum<In>>; ++r) {
#pragma unroll
      for (int v = 0; v < kVector<In>; ++v) sums[i + r][v] += narrow[r] * wide[v];
    }
  }
}

// sums = Σ narrow wideᵀ over the positions begin .. end.
template <typename In, int N, typename Narrow>
FUDLR_DEVICE void accumulate(const gpu::Samples& s, const Spot& spot, int64_t begin, int64_t end,
                             Narrow& narrow, Sum<In> (&sums)[N][kVector<In>]) {
  constexpr int V = kVector<In>;
  constexpr int kAhead = 4;  // positions whose loads are under way together
  FUDLR_SHARED(Sum<In>, staged, [kStage][N]);
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[i][v] = 0;
  }
  const In* wide = static_cast<const In*>(s.wide.data) + spot.column;
  const bool aligned = is_aligned(s.wide.data) && s.wide.stride % V == 0;
  for (int64_t first = begin; first < end; first += kStage) {
    const int count = static_cast<int>(min_of(kStage, end - first));
    __syncthreads();  // everybody is done with the rows staged before
    narrow.prepare(first, count);
    for (int e = threadIdx.x; e < count * N; e += blockDim.x) {
      const int row = e % N;
      staged[e / N][row] =
          row < spot.rows ? narrow.at(first + e / N, e / N, spot.row + row) : Sum<In>(0);
    }
    __syncthreads();  // the rows are there
    const In* from = wide + first * s.wide.stride;
    int t = 0;
    for (; t + kAhead <= count; t += kAhead) {
      alignas(16) In columns[kAhead][V];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        load_some(from + (t + u) * s.wide.stride, spot.columns, aligned, columns[u]);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) add_position<In, N>(staged[t + u], columns[u], sums);
    }
    for (; t < count; ++t) {
      alignas(16) In columns[V];
      load_some(from + t * s.wide.stride, spot.columns, aligned, columns);
      add_position<In, N>(staged[t], columns, sums);
    }
  }
}

// Walks down the list of rows: row m of it is row m % narrow of matrix m / narrow.
struct Walk {
  int64_t at;  // the row's first number, from the stack's
  int64_t row;
  FUDLR_DEVICE Walk(int64_t first, int64_t narrow, const gpu::Stack& to)
      : at(first / narrow * to.stack + first % narrow * to.narrow), row(first % narrow) {}
  FUDLR_DEVICE void next(int64_t narrow, const gpu::Stack& to) {
    at += to.narrow;
    if (++row == narrow) {
      row = 0;
      at += to.stack - narrow * to.narrow;
    }
  }
};

// A tile into a stack of matrices [narrow, wide].
template <int N, int V, typename Number>
FUDLR_DEVICE void store_tile(const Number (&sums)[N][V], const Spot& spot, int64_t narrow,
                             const gpu::Stack& to) {
  Number* data = static_cast<Number*>(to.data) + spot.column * to.wide;
  const bool aligned = is_aligned(to.data) && to.narrow % V == 0 && to.stack % V == 0;
  Walk walk(spot.row, narrow, to);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < spot.rows) {
      if (to.wide == 1) {
        store_some(sums[i], spot.columns, aligned, data + walk.at);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (v < spot.columns) data[walk.at + v * to.wide] = sums[i][v];
        }
      }
    }
    walk.next(narrow, to);
  }
}

template <int N, int V, typename Number>
FUDLR_DEVICE void fill(Number (&sums)[N][V], Number value) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[i][v] = value;
  }
}

template <typename In, int N>
FUDLR_KERNEL(kThreads, 3)
sample_grads_kernel(gpu::Samples s, int64_t tiles, gpu::Stack grads) {
  for (int64_t unit = blockIdx.x; unit < s.n * tiles; unit += gridDim.x) {
    const int64_t i = unit / tiles;
    const Spot spot = spot_at<In, N>(unit % tiles, s.narrow.size, s.wide.size);
    alignas(16) Sum<In> sums[N][kVector<In>];
    if (*s.bad) {
      fill(sums, quiet_nan<Sum<In>>());
    } else {
      PlainRows<In> rows{s};
      accumulate<In, N>(s, spot, s.offsets[i], s.offsets[i + 1], rows, sums);
    }
    gpu::Stack to = grads;
    to.data = static_cast<Sum<In>*>(grads.data) + i * grads.stack;
    store_tile(sums, spot, s.narrow.size, to);
  }
}

// A thread's columns of a vector, in pieces of 16 bytes. 16-bit inputs have two of them, a sector
// of 32 bytes: a warp that loaded its first pieces and then its second ones would ask for half of
// every sector, twice. So the lanes of a pair trade a piece of their sums, once for all vectors:
// each then has one of the even lane's columns and one of the odd lane's, and a load takes whole
// sectors.
template <typename In, int N>
struct Pieces {
  using Real = Sum<In>;
  static constexpr int V = kVector<In>;
  static constexpr int W = kVector<Real>;
  static constexpr bool kTraded = V == 2 * W;

  // The first column of the thread's sums[.][piece * W].
  static FUDLR_DEVICE int64_t column(const Spot& spot, int piece) {
    if (!kTraded) return spot.column + piece * W;
    const int odd = threadIdx.x % 2;
    return spot.column - odd * V + piece * V + odd * W;
  }
  static FUDLR_DEVICE void trade(Real (&sums)[N][V]) {
    if constexpr (kTraded) {
      const bool odd = threadIdx.x % 2 == 1;
#pragma unroll
      for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const Real given = odd ? sums[i][w] : sums[i][W + w];
          const Real got = __shfl_xor_sync(kAllLanes, given, 1);
          sums[i][w] = odd ? got : sums[i][w];
          sums[i][W + w] = odd ? sums[i][W + w] : got;
        }
      }
    }
  }
};

// work[slot, tile, j] = the products of one chunk of a sample in one tile.
template <typename In, int N>
FUDLR_KERNEL(kThreads, 3)
sample_dots_kernel(gpu::Samples s, int64_t tiles, int64_t slots, const Sum<In>* vectors, int64_t k,
                   Sum<In>* work) {
  using Parts = Pieces<In, N>;
  constexpr int V = Parts::V, W = Parts::W;
  if (*s.bad) return;
  const int64_t matrix = s.narrow.size * s.wide.size;
  const bool aligned = is_aligned(vectors) && s.wide.size % W == 0;
  for (int64_t unit = blockIdx.x; unit < slots * tiles; unit += gridDim.x) {
    const Chunk chunk = chunk_at(s, unit / tiles);
    if (chunk.begin >= chunk.end) continue;
    const Spot spot = spot_at<In, N>(unit % tiles, s.narrow.size, s.wide.size);
    alignas(16) Sum<In> sums[N][V];
    PlainRows<In> rows{s};
    accumulate<In, N>(s, spot, chunk.begin, chunk.end, rows, sums);
    Parts::trade(sums);
    block_sums(k, work + unit * k, [&](int64_t j) {
      const Sum<In>* from = vectors + j * matrix + spot.row * s.wide.size;
      Sum<In> sum = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int piece = 0; piece < V / W; ++piece) {
          if (i < spot.rows) {
            const int64_t column = Parts::column(spot, piece);
            alignas(16) Sum<In> vector[W];
            load_some(from + i * s.wide.size + column, s.wide.size - column, aligned, vector);
#pragma unroll
            for (int w = 0; w < W; ++w) sum += vector[w] * sums[i][piece * W + w];
          }
        }
      }
      return sum;
    });
  }
}

// dots[i, j] = Σ work[slot, tile, j] over sample i's chunks and the tiles, in order.
template <typename Number>
FUDLR_KERNEL(256, 2)
sample_dots_finish_kernel(gpu::Samples s, int64_t tiles, const Number* work, int64_t k,
                          Number* dots) {
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < s.n * k;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (*s.bad) {
      dots[e] = quiet_nan<Number>();
      continue;
    }
    const int64_t i = e / k;
    const int64_t chunks = (s.offsets[i + 1] - s.offsets[i] + kChunk - 1) / kChunk;
    const Number* from = work + first_slot(s.offsets, i) * tiles * k + e % k;
    Number sum = 0;
    for (int64_t c = 0; c < chunks * tiles; ++c) sum += from[c * k];
    dots[e] = sum;
  }
}

// Part p of all positions, one tile of (weighting, row) × columns, into matrix stack p of `to`.
template <typename In, int N>
FUDLR_KERNEL(kThreads, 3)
grad_sum_kernel(gpu::Samples s, int64_t tiles, int64_t parts, const Sum<In>* weights, int64_t count,
                gpu::Stack to, int64_t part_stride) {
  FUDLR_SHARED(int64_t, sample_of, [kStage]);
  for (int64_t unit = blockIdx.x; unit < parts * tiles; unit += gridDim.x) {
    const Spot spot = spot_at<In, N>(unit % tiles, count * s.narrow.size, s.wide.size);
    alignas(16) Sum<In> sums[N][kVector<In>];
    if (*s.bad) {
      fill(sums, quiet_nan<Sum<In>>());
    } else {
      const int64_t length = (s.positions + parts - 1) / parts;
      const int64_t begin = s.offsets[0] + unit / tiles * length;
      WeightedRows<In> rows{s, weights, sample_of};
      accumulate<In, N>(s, spot, begin, min_of(s.offsets[s.n], begin + length), rows, sums);
    }
    gpu::Stack part = to;
    part.data = static_cast<Sum<In>*>(to.data) + unit / tiles * part_stride;
    store_tile(sums, spot, s.narrow.size, part);
  }
}

// sums = Σ_p parts[p], in order, from [parts, count, narrow, wide] to matrices of any layout.
template <typename Number>
FUDLR_KERNEL(256, 2)
grad_sum_finish_kernel(const Number* work, int64_t parts, int64_t count, int64_t narrow,
                       int64_t wide, gpu::Stack to) {
  const int64_t size = count * narrow * wide;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < size;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    Number sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += work[p * size + e];
    const int64_t row = e / wide;
    static_cast<Number*>(
        to.data)[row / narrow * to.stack + row % narrow * to.narrow + e % wide * to.wide] = sum;
  }
}

// One block: looks at all offsets.
FUDLR_KERNEL(1024, 1)
check_offsets_kernel(const int64_t* offsets, int64_t n, int64_t positions, int* bad) {
  FUDLR_SHARED(int, found, [1]);
  if (threadIdx.x == 0) found[0] = offsets[0] < 0 || offsets[n] > positions;
  __syncthreads();
  bool falls = false;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) falls |= offsets[i] > offsets[i + 1];
  if (falls) atomicOr(found, 1);
  __syncthreads();
  if (threadIdx.x == 0) *bad = found[0];
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
