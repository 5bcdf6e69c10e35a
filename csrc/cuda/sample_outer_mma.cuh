// Per-sample gradients G_i = Σ_t narrow_t wide_tᵀ, their products and weighted sums, on tensor
// cores: 16-bit inputs where narrow has more than 8 columns, float32 sums.
//
// Who does what. A block of 4 warps holds a tile of G: 16 · M narrow rows × 128 wide columns, a
// warp all rows of 32 columns, as M × 4 accumulators of mma.m16n8k16 (K = 16 positions) in
// registers. 32 positions at a time are staged in shared memory as they lie in global memory,
// [position, column], by 128-bit loads; the next 32 are on their way to registers while these are
// multiplied, and the buffer is double, so that a stage costs one barrier. Both operands want pairs
// of neighbouring positions in a register: ldmatrix with .trans turns the tiles on the way. Rows
// are padded by 16 bytes, so that the eight rows of a matrix lie in different banks.
//
// Positions past the end are staged as zeros. Results go where sample_outer.cuh says, with the same
// order of reduction: 16 positions are one product of the tensor core. grad_sum must not round
// w · narrow to 16 bits: each sample's G is finished on its own and added to the total with its
// weight, in float32.
//
// Must move: as sample_outer.cuh. 2 T a b operations at 990 TFLOP/s (H100, dense bf16) against
// 2 T b bytes at 3.35 TB/s: memory is the limit up to a = 296. With 64 rows a tile, wide comes a/64
// times, from L2 after the first, and narrow b/128 times: 43 operations a byte of L2.
#pragma once

#include "cuda/sample_outer.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kMmaWide = 128;
constexpr int kMmaStage = 32;
constexpr int kPad = 8;  // 16-bit numbers between the rows of a buffer

template <typename In, int Columns>
using Staged = In[kMmaStage][Columns + kPad];

// One thread's share of kMmaStage positions × Columns on its way from global to shared memory.
template <typename In, int Columns>
struct Share {
  static constexpr int kEach = kMmaStage * Columns / 8 / kThreads;
  alignas(16) In numbers[kEach][8];

  FUDLR_DEVICE void load(const gpu::Rows& rows, int64_t column, int64_t first, int64_t end) {
    const In* data = static_cast<const In*>(rows.data);
    const bool aligned = is_aligned(data) && rows.stride % 8 == 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int vector = e * kThreads + threadIdx.x;
      const int64_t position = first + vector / (Columns / 8);
      const int64_t at = column + vector % (Columns / 8) * 8;
      const int64_t count = position < end ? rows.size - at : 0;
      load_some(data + position * rows.stride + at, count, aligned, numbers[e]);
    }
  }
  FUDLR_DEVICE void store(Staged<In, Columns>& to) const {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int vector = e * kThreads + threadIdx.x;
      In* row = to[vector / (Columns / 8)] + vector % (Columns / 8) * 8;
      *reinterpret_cast<uint4*>(row) = *reinterpret_cast<const uint4*>(numbers[e]);
    }
  }
};

// A thread's accumulators: D fragments of M × 4 tiles of 16 × 8.
template <int M>
using Fragments = float[M][4][4];

template <int M>
FUDLR_DEVICE void fill_fragments(Fragments<M>& d, float value) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[m][n][i] = value;
    }
  }
}

// Where element i of tile (m, n) lies in the block's tile.
FUDLR_DEVICE int fragment_row(int m, int i) {
  return m * 16 + static_cast<int>(threadIdx.x % 32 / 4) + (i >= 2 ? 8 : 0);
}
FUDLR_DEVICE int fragment_column(int n, int i) {
  return static_cast<int>(threadIdx.x / 32) * 32 + n * 8 + static_cast<int>(threadIdx.x % 4) * 2 +
         i % 2;
}

// d += the staged positions' products; only the first `tiles` of the M row tiles exist.
template <typename In, int M>
FUDLR_DEVICE void multiply_staged(const Staged<In, 16 * M>& narrow,
                                  const Staged<In, kMmaWide>& wide, int tiles, Fragments<M>& d) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int row = lane % 8;  // of the matrix that this lane names a row of
  const int matrix = lane / 8;
#pragma unroll
  for (int k = 0; k < kMmaStage; k += 16) {
    uint32_t b[2][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      // Matrices: positions 0-7 and 8-15 of 8 columns, then the same of the next 8.
      load_matrices_transposed(
          b[n], &wide[k + matrix % 2 * 8 + row][warp * 32 + n * 16 + matrix / 2 * 8]);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m < tiles) {
        // Matrices: rows 0-7 and 8-15 at positions 0-7, then the same at positions 8-15.
        uint32_t a[4];
        load_matrices_transposed(a, &narrow[k + matrix / 2 * 8 + row][m * 16 + matrix % 2 * 8]);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          mma_16x8x16<In>(d[m][n], a, pair);
        }
      }
    }
  }
}

template <typename In, int M>
struct Buffers {
  Staged<In, 16 * M>* narrow;
  Staged<In, kMmaWide>* wide;
};

// d += Σ narrow wideᵀ over the positions begin .. end.
template <typename In, int M>
FUDLR_DEVICE void accumulate_mma(const gpu::Samples& s, int64_t row, int64_t column, int64_t begin,
                                 int64_t end, Buffers<In, M> buffers, Fragments<M>& d) {
  const int tiles = static_cast<int>(min_of(M, (s.narrow.size - row + 15) / 16));
  Share<In, 16 * M> narrow;
  Share<In, kMmaWide> wide;
  narrow.load(s.narrow, row, begin, end);
  wide.load(s.wide, column, begin, end);
  __syncthreads();  // whoever used the buffers before is done
  int which = 0;
  for (int64_t first = begin; first < end; first += kMmaStage) {
    narrow.store(buffers.narrow[which]);
    wide.store(buffers.wide[which]);
    // The one barrier of a stage: these rows are there, and the other buffer, which the next round
    // fills, was read before it.
    __syncthreads();
    if (first + kMmaStage < end) {
      narrow.load(s.narrow, row, first + kMmaStage, end);
      wide.load(s.wide, column, first + kMmaStage, end);
    }
    multiply_staged<In, M>(buffers.narrow[which], buffers.wide[which], tiles, d);
    which ^= 1;
  }
}

// A block's tile: its first row and column.
struct MmaSpot {
  int64_t row, column;
};
template <int M>
FUDLR_DEVICE MmaSpot mma_spot_at(int64_t tile, int64_t wide) {
  const int64_t across = (wide + kMmaWide - 1) / kMmaWide;
  return {tile / across * 16 * M, tile % across * kMmaWide};
}

template <int M>
FUDLR_DEVICE void store_fragments(const Fragments<M>& d, const MmaSpot& spot, const gpu::Samples& s,
                                  float* to, int64_t narrow_stride, int64_t wide_stride) {
  const bool paired =
      wide_stride == 1 && narrow_stride % 2 == 0 && reinterpret_cast<uintptr_t>(to) % 8 == 0;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int64_t row = spot.row + fragment_row(m, i);
        const int64_t column = spot.column + fragment_column(n, i);
        if (row < s.narrow.size && column < s.wide.size) {
          float* at = to + row * narrow_stride + column * wide_stride;
          if (paired && column + 1 < s.wide.size) {
            *reinterpret_cast<float2*>(at) = make_float2(d[m][n][i], d[m][n][i + 1]);
          } else {
            at[0] = d[m][n][i];
            if (column + 1 < s.wide.size) at[wide_stride] = d[m][n][i + 1];
          }
        }
      }
    }
  }
}

template <typename In, int M>
FUDLR_KERNEL(kThreads, 2)
sample_grads_mma_kernel(gpu::Samples s, int64_t tiles, gpu::Stack grads) {
  FUDLR_SHARED(In, narrow, [2][kMmaStage][16 * M + kPad]);
  FUDLR_SHARED(In, wide, [2][kMmaStage][kMmaWide + kPad]);
  for (int64_t unit = blockIdx.x; unit < s.n * tiles; unit += gridDim.x) {
    const int64_t i = unit / tiles;
    const MmaSpot spot = mma_spot_at<M>(unit % tiles, s.wide.size);
    Fragments<M> d;
    fill_fragments<M>(d, *s.bad ? quiet_nan<float>() : 0.f);
    if (!*s.bad) {
      accumulate_mma<In, M>(s, spot.row, spot.column, s.offsets[i], s.offsets[i + 1],
                            {narrow, wide}, d);
    }
    store_fragments<M>(d, spot, s, static_cast<float*>(grads.data) + i * grads.stack, grads.narrow,
                       grads.wide);
  }
}

template <typename In, int M>
FUDLR_KERNEL(kThreads, 2)
sample_dots_mma_kernel(gpu::Samples s, int64_t tiles, int64_t slots, const float* vectors,
                       int64_t k, float* work) {
  FUDLR_SHARED(In, narrow, [2][kMmaStage][16 * M + kPad]);
  FUDLR_SHARED(In, wide, [2][kMmaStage][kMmaWide + kPad]);
  if (*s.bad) return;
  const int64_t matrix = s.narrow.size * s.wide.size;
  const bool paired = s.wide.size % 2 == 0 && is_aligned(vectors);
  for (int64_t unit = blockIdx.x; unit < slots * tiles; unit += gridDim.x) {
    const Chunk chunk = chunk_at(s, unit / tiles);
    if (chunk.begin >= chunk.end) continue;
    const MmaSpot spot = mma_spot_at<M>(unit % tiles, s.wide.size);
    Fragments<M> d;
    fill_fragments<M>(d, 0.f);
    accumulate_mma<In, M>(s, spot.row, spot.column, chunk.begin, chunk.end, {narrow, wide}, d);
    block_sums(k, work + unit * k, [&](int64_t j) {
      const float* vector = vectors + j * matrix;
      float sum = 0;
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const int64_t row = spot.row + fragment_row(m, i);
            const int64_t column = spot.column + fragment_column(n, i);
            if (row < s.narrow.size && column < s.wide.size) {
              const float* at = vector + row * s.wide.size + column;
              float2 pair = make_float2(0.f, 0.f);
              if (paired) {
                pair = *reinterpret_cast<const float2*>(at);
              } else {
                pair.x = at[0];
                if (column + 1 < s.wide.size) pair.y = at[1];
              }
              sum += pair.x * d[m][n][i] + pair.y * d[m][n][i + 1];
            }
          }
        }
      }
      return sum;
    });
  }
}

// Part p of all positions, one weighting and one tile, into matrix stack p of `to`.
template <typename In, int M>
FUDLR_KERNEL(kThreads, 2)
grad_sum_mma_kernel(gpu::Samples s, int64_t tiles, int64_t parts, const float* weights,
                    int64_t count, gpu::Stack to, int64_t part_stride) {
  FUDLR_SHARED(In, narrow, [2][kMmaStage][16 * M + kPad]);
  FUDLR_SHARED(In, wide, [2][kMmaStage][kMmaWide + kPad]);
  for (int64_t unit = blockIdx.x; unit < parts * count * tiles; unit += gridDim.x) {
    const int64_t weighting = unit / tiles % count;
    const int64_t part = unit / tiles / count;
    const MmaSpot spot = mma_spot_at<M>(unit % tiles, s.wide.size);
    Fragments<M> total;
    fill_fragments<M>(total, *s.bad ? quiet_nan<float>() : 0.f);
    if (!*s.bad) {
      const int64_t length = (s.positions + parts - 1) / parts;
      const int64_t end = min_of(s.offsets[s.n], s.offsets[0] + (part + 1) * length);
      int64_t begin = s.offsets[0] + part * length;
      int64_t i = begin < end ? sample_at(s, begin) : 0;
      for (; begin < end; begin = s.offsets[++i]) {
        const int64_t stop = min_of(end, s.offsets[i + 1]);
        if (stop <= begin) continue;
        Fragments<M> d;
        fill_fragments<M>(d, 0.f);
        accumulate_mma<In, M>(s, spot.row, spot.column, begin, stop, {narrow, wide}, d);
        const float weight = weights[weighting * s.n + i];
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) total[m][n][e] += weight * d[m][n][e];
          }
        }
      }
    }
    store_fragments<M>(total, spot, s,
                       static_cast<float*>(to.data) + part * part_stride + weighting * to.stack,
                       to.narrow, to.wide);
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
