// Products with stored rows G [n, p] on pointers and sizes, compiled once for each instruction set.
//
// A chunk of rows is the unit that threads share and that sums are formed in; a tile of it stays in
// L2 while both of its products are taken, so that memory sees every row once.
//
// Limit for n rows of p numbers and k vectors: n·p·(bytes of a number) read, n·p·k multiply-adds
// for G Vᵀ or W G, twice as many for the fused Gᵀ diag(w) (G Vᵀ).
#pragma once

#include <cstdint>

#include "cpu/sample_outer_kernel.h"

namespace fudlr {

constexpr int64_t kRowChunk = 240;    // rows whose sums are formed before they join the total
constexpr int64_t kScaleBlock = 128;  // columns of an int8 row that share a scale

// An int8 as it is stored: times its row's and block's scale.
struct Int8 {
  int8_t value;
};

// G [n, p]; row i starts at data + i * stride. Scales [n, ceil(p / 128)] for Int8, else none.
template <typename In>
struct StoredRows {
  const In* data;
  int64_t stride;
  int64_t count;  // n
  int64_t size;   // p
  const float* scales;
  int64_t scale_stride;
};

// What to do with a chunk: products with `lines` vectors, sums, or both.
template <typename Real>
struct RowTask {
  int64_t lines;
  const Real* vectors;  // packed; null: the sums' coefficients are the weights [lines, n]
  Real* dots;           // [n, lines], where there are vectors
  const Real* weights;  // with vectors [n] or null, else [lines, n]
  int64_t weight_stride;
  bool sums;
};

template <typename In, typename Real>
struct RowKernels {
  // Numbers of one packed vector, and of one line of partial sums.
  int64_t (*line_size)(int64_t p);
  void (*pack)(const Real* vectors, int64_t stride, int64_t lines, int64_t p, Real* packed);
  // Rows begin .. end, at most a chunk; `partial` [lines, line_size] takes their sums.
  void (*chunk)(const StoredRows<In>&, const RowTask<Real>&, int64_t begin, int64_t end,
                Real* partial);
};

struct RowProductsTable {
  RowKernels<float, float> f32;
  RowKernels<double, double> f64;
  RowKernels<Bfloat16, float> bf16;
  RowKernels<Int8, float> int8;
};

FUDLR_DECLARE_TABLE(RowProductsTable, row_products);

}  // namespace fudlr
