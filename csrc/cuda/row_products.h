// Launchers of the row_products kernels: pointers, sizes and a stream, no tensors.
//
// Each returns null, or what the launch had to say against itself.
#pragma once

#include <cstdint>

#include "cuda/number.h"

namespace fudlr::gpu {

// G [n, p]; row i starts at data + i * stride. Scales [n, ceil(p / 128)] for int8, else none.
struct StoredRows {
  Number number;  // all of them
  const void* data;
  int64_t stride;
  int64_t n;
  int64_t p;
  const float* scales;
  int64_t scale_stride;
};

// Coefficient c_i of weighting j is data[i * by_row + j * by_weighting], times weights[i] unless
// that is null; in float, or double for f64.
struct Coefficients {
  const void* data;
  int64_t by_row, by_weighting;
  const void* weights;
};

// dots [n, k] = G Vᵀ, vectors [k, p] without gaps; float, or double for f64. work holds
// row_dots_work() of them.
int64_t row_dots_work(const StoredRows& rows, int64_t k);
const char* row_dots(const StoredRows& rows, const void* vectors, int64_t k, void* work, void* dots,
                     void* stream);

// sums [count, p] in double = Σ_i c_i G_i. work holds row_sums_work() numbers.
int64_t row_sums_work(const StoredRows& rows, int64_t count);
const char* row_sums(const StoredRows& rows, const Coefficients& coefficients, int64_t count,
                     void* work, double* sums, void* stream);

// Both, the sums' coefficients being the dots times weights [n] unless that is null.
int64_t row_gram_dots_work(const StoredRows& rows, int64_t k);
const char* row_gram(const StoredRows& rows, const void* vectors, const void* weights, int64_t k,
                     void* dots_work, void* sums_work, void* dots, double* sums, void* stream);

}  // namespace fudlr::gpu
