// Launchers of the row_products kernels: pointers, sizes and a stream, no tensors.
#pragma once

#include <cstdint>

namespace fudlr::gpu {

enum class RowNumber { f32, f64, bf16, int8 };

// G [n, p]; row i starts at data + i * stride. Scales [n, ceil(p / 128)] for int8, else none.
struct StoredRows {
  RowNumber number;
  const void* data;
  int64_t stride;
  int64_t n;
  int64_t p;
  const float* scales;
  int64_t scale_stride;
};

// dots [n, k] = G Vᵀ, vectors [k, p] without gaps; float, or double for f64.
const char* row_dots(const StoredRows& rows, const void* vectors, int64_t k, void* dots,
                     void* stream);

// sums [w, p] in double = Σ_i c_i G_i, where coefficient c_i of weighting j is
// coefficients[i * by_row + j * by_weighting], times weights[i] unless that is null.
// work holds sums_work() numbers.
struct Coefficients {
  const void* data;
  int64_t by_row, by_weighting;
  const void* weights;
};
int64_t row_sums_work(const StoredRows& rows, int64_t count);
const char* row_sums(const StoredRows& rows, const Coefficients& coefficients, int64_t count,
                     void* work, double* sums, void* stream);

}  // namespace fudlr::gpu
