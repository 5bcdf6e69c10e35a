// Launchers of the sample_outer kernels: pointers, sizes and a stream, no tensors.
//
// Each returns null, or what the launch had to say against itself. Nothing here waits for the
// device or allocates.
#pragma once

#include <cstdint>

#include "cuda/number.h"

namespace fudlr::gpu {

// [rows, size] in device memory: row p starts at data + p * stride, its elements follow each other.
struct Rows {
  const void* data;
  int64_t stride;
  int64_t size;
};

// The samples' factors, narrow.size <= wide.size: G_i = Σ_t narrow_t wide_tᵀ over its positions.
struct Samples {
  Number number;
  Rows narrow, wide;
  const int64_t* offsets;  // [n + 1]
  int64_t n;
  int64_t positions;  // T
  const int* bad;     // not zero where the offsets are no offsets, see check_offsets
};

// A stack of matrices in float (double for f64): element (m, i, j) of narrow row i and wide column
// j is data[m * stack + i * narrow + j * wide].
struct Stack {
  void* data;
  int64_t stack, narrow, wide;
};

// *bad = whether the offsets fall somewhere, or leave 0 .. positions. The host cannot look at them
// without waiting for the device, so the kernels do: where they are bad nothing is read through
// them, and every number of the result is NaN.
const char* check_offsets(const int64_t* offsets, int64_t n, int64_t positions, int* bad,
                          void* stream);

const char* sample_grads(const Samples& samples, const Stack& grads, void* stream);

// vectors [k, narrow, wide] without gaps, dots [n, k]; work holds dots_work() numbers.
int64_t dots_work(const Samples& samples, int64_t k);
const char* sample_dots(const Samples& samples, const void* vectors, int64_t k, void* work,
                        void* dots, void* stream);

// weights [count, n] without gaps; work holds sum_work() numbers.
int64_t sum_work(const Samples& samples, int64_t count);
const char* grad_sum(const Samples& samples, const void* weights, int64_t count, void* work,
                     const Stack& sums, void* stream);

}  // namespace fudlr::gpu
