// Products with stored rows G [n, p]: G Vᵀ [n, k] and W G [w, p].
//
// Who does what. row_dots: a block of 128 threads (32 for short rows) takes four rows and one part
// of their columns; a thread loads every 128th vector of 16 bytes of them, and the same columns of
// up to eight vectors, each of which serves all four rows: 32 sums in registers. row_sums: a
// thread owns one vector of 16 bytes of columns, and walks down the rows of one chunk of
// kRowChunk; the coefficients of 32 rows are staged in shared memory, where all threads read them
// as broadcasts; up to eight sums a column stay in registers. row_gram: waves of as many rows as
// stay in L2 go through row_dots and then through row_sums, so that memory sees a row once.
//
// Order of reduction. row_dots: a thread's columns from left to right, lanes (warp_sum), warps,
// parts. row_sums: the rows of a chunk in order, in float32 (float64 for float64), then the chunks
// in order, in float64. All of it is fixed by the sizes alone. No atomics.
//
// Must move: G once for every eight vectors or weightings, the results once; 2 n p k operations,
// twice as many for row_gram. int8 with eight vectors is 16 operations a byte, below the 20
// (67 TFLOP/s over 3.35 TB/s) at which an H100 would stop waiting for memory:
// n · p · (bytes of a number) / 3.35e12 s. row_gram writes and reads k · p partial sums a chunk
// besides, 2 k / 256 of the bytes of float32 rows; rows of more than 64 KB come in waves larger
// than kWaveBytes, of which some may have to be read again.
#pragma once

#include "cuda/block.cuh"
#include "cuda/row_products.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

// Rows that a block takes at once; int8 has sixteen columns a thread, so fewer of them.
template <typename In>
constexpr int kRowsAtOnce = sizeof(In) == 1 ? 2 : 4;
constexpr int kVectorsAtOnce = 8;
// Weightings that row_sums takes at once.
template <typename In>
constexpr int kSumsAtOnce = sizeof(In) == 1 ? 4 : 8;
constexpr int64_t kRowChunk = 256;
constexpr int64_t kScaleBlock = 128;  // columns of an int8 row that share a scale
constexpr int kRowThreads = 128;

// The scale of a column's block, one where rows have none.
template <typename In>
FUDLR_DEVICE Sum<In> scale_at(const gpu::StoredRows& g, int64_t row, int64_t column) {
  if constexpr (sizeof(In) == 1) {
    return g.scales[row * g.scale_stride + column / kScaleBlock];
  } else {
    return Sum<In>(1);
  }
}

// One vector of columns of a row, widened and scaled; zero past the end. A vector never crosses a
// block of scales.
template <typename In>
FUDLR_DEVICE void load_row(const gpu::StoredRows& g, int64_t row, int64_t column, bool aligned,
                           Sum<In> (&to)[kVector<In>]) {
  alignas(16) In raw[kVector<In>];
  load_some(static_cast<const In*>(g.data) + row * g.stride + column, g.p - column, aligned, raw);
  const Sum<In> scale = column < g.p ? scale_at<In>(g, row, column) : Sum<In>(0);
#pragma unroll
  for (int v = 0; v < kVector<In>; ++v) {
    to[v] = sizeof(In) == 1 ? scale * widen(raw[v]) : widen(raw[v]);
  }
}

template <typename In>
FUDLR_DEVICE bool rows_are_aligned(const gpu::StoredRows& g) {
  return is_aligned(g.data) && g.stride % kVector<In> == 0;
}

// to[part, row, j] = the product over one of `parts` parts of the columns, each `length` long.
template <typename In>
FUDLR_KERNEL(kRowThreads, 4)
row_dots_kernel(gpu::StoredRows g, const Sum<In>* vectors, int64_t k, int64_t parts, int64_t length,
                Sum<In>* to) {
  constexpr int kRows = kRowsAtOnce<In>;
  constexpr int V = kVector<In>;
  constexpr int Q = kVector<Sum<In>>;
  FUDLR_SHARED(Sum<In>, joined, [kRowThreads / 32][kVectorsAtOnce * kRows]);
  const bool aligned = rows_are_aligned<In>(g);
  const bool vectors_aligned = is_aligned(vectors) && g.p % Q == 0;
  const int64_t groups = (g.n + kRows - 1) / kRows;
  for (int64_t unit = blockIdx.x; unit < groups * parts; unit += gridDim.x) {
    const int64_t first = unit / parts * kRows;
    const int64_t begin = unit % parts * length;
    const int64_t end = min_of(g.p, begin + length);
    for (int64_t j = 0; j < k; j += kVectorsAtOnce) {
      const int count = static_cast<int>(min_of(kVectorsAtOnce, k - j));
      Sum<In> sums[kVectorsAtOnce][kRows] = {};
      for (int64_t column = begin + threadIdx.x * V; column < end; column += blockDim.x * V) {
        Sum<In> row[kRows][V];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          // Rows past the end repeat the last one; nobody keeps their sums.
          load_row<In>(g, min_of(first + r, g.n - 1), column, aligned, row[r]);
        }
#pragma unroll
        for (int m = 0; m < kVectorsAtOnce; ++m) {
          if (m < count) {
#pragma unroll
            for (int q = 0; q < V; q += Q) {
              alignas(16) Sum<In> vector[Q];
              load_some(vectors + (j + m) * g.p + column + q, g.p - column - q, vectors_aligned,
                        vector);
#pragma unroll
              for (int v = 0; v < Q; ++v) {
#pragma unroll
                for (int r = 0; r < kRows; ++r) sums[m][r] += vector[v] * row[r][q + v];
              }
            }
          }
        }
      }
      __syncthreads();  // the sums of the round before have been read
#pragma unroll
      for (int m = 0; m < kVectorsAtOnce; ++m) {
        if (m < count) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const Sum<In> sum = warp_sum(sums[m][r]);
            if (threadIdx.x % 32 == 0) joined[threadIdx.x / 32][m * kRows + r] = sum;
          }
        }
      }
      __syncthreads();  // every warp's sums are there
      for (int e = threadIdx.x; e < count * kRows; e += blockDim.x) {
        Sum<In> sum = joined[0][e];
        for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += joined[w][e];
        const int64_t row = first + e % kRows;
        if (row < g.n) to[(unit % parts * g.n + row) * k + j + e / kRows] = sum;
      }
    }
  }
}

// to[e] = Σ work[part, e] in To, part after part.
template <typename From, typename To>
FUDLR_KERNEL(256, 2)
join_parts_kernel(const From* work, int64_t parts, int64_t size, To* to) {
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < size;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    To sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += work[part * size + e];
    to[e] = sum;
  }
}

// work[chunk, weighting, column] = the sum over a chunk's rows.
template <typename In>
FUDLR_KERNEL(kRowThreads, 3)
row_sums_kernel(gpu::StoredRows g, gpu::Coefficients c, int64_t count, int64_t across,
                Sum<In>* work) {
  constexpr int V = kVector<In>;
  constexpr int kAtOnce = kSumsAtOnce<In>;
  constexpr int kStaged = 32;
  FUDLR_SHARED(Sum<In>, staged, [kStaged][kAtOnce]);
  const bool aligned = rows_are_aligned<In>(g);
  const bool work_aligned = g.p % V == 0;
  const int64_t groups = (count + kAtOnce - 1) / kAtOnce;
  const int64_t chunks = (g.n + kRowChunk - 1) / kRowChunk;
  for (int64_t unit = blockIdx.x; unit < chunks * groups * across; unit += gridDim.x) {
    const int64_t column = (unit % across * blockDim.x + threadIdx.x) * V;
    const int64_t j = unit / across % groups * kAtOnce;
    const int64_t chunk = unit / across / groups;
    const int64_t end = min_of(g.n, (chunk + 1) * kRowChunk);
    alignas(16) Sum<In> sums[kAtOnce][V] = {};
    for (int64_t first = chunk * kRowChunk; first < end; first += kStaged) {
      const int rows = static_cast<int>(min_of(kStaged, end - first));
      __syncthreads();  // everybody is done with the coefficients staged before
      for (int e = threadIdx.x; e < rows * kAtOnce; e += blockDim.x) {
        const int64_t row = first + e / kAtOnce;
        const int64_t m = j + e % kAtOnce;
        Sum<In> value = 0;
        if (m < count) {
          value = static_cast<const Sum<In>*>(c.data)[row * c.by_row + m * c.by_weighting];
          if (c.weights != nullptr) value *= static_cast<const Sum<In>*>(c.weights)[row];
        }
        staged[e / kAtOnce][e % kAtOnce] = value;
      }
      __syncthreads();  // the coefficients are there
      for (int t = 0; t < rows; ++t) {
        Sum<In> row[V];
        load_row<In>(g, first + t, column, aligned, row);
#pragma unroll
        for (int m = 0; m < kAtOnce; ++m) {
          const Sum<In> coefficient = staged[t][m];
#pragma unroll
          for (int v = 0; v < V; ++v) sums[m][v] += coefficient * row[v];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m) {
      if (j + m < count) {
        store_some(sums[m], g.p - column, work_aligned,
                   work + (chunk * count + j + m) * g.p + column);
      }
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
