// The projection of a sketch's factors on pointers and sizes, compiled once for each instruction
// set; the outer products of what it makes are the sample_outer family's.
//
// Limit: T·(q·a + r·b) multiply-adds for the projections, T·q·r for the outer products, and one
// reading of the factors: a [T, q] and a [T, r] live in cache, a group of samples at a time.
#pragma once

#include <cstdint>

#include "cpu/sample_outer_kernel.h"

namespace fudlr {

template <typename In, typename Real>
struct SampleSketchKernels {
  // Elements that a packed projection [q, width] needs, and those of one projected row.
  int64_t (*packed_size)(int64_t q, int64_t width);
  int64_t (*row_size)(int64_t q);
  // Puts a projection, element (i, j) at data[i * stride + j], into the order of `project`.
  void (*pack)(const Real* projection, int64_t stride, int64_t q, int64_t width, Real* packed);
  // to[t] = P rows_t for `count` rows of `rows` from `first` on; a row of `to` has row_size(q)
  // numbers, of which the first q count.
  void (*project)(Factor<In> rows, int64_t first, int64_t count, const Real* packed, int64_t q,
                  Real* to);
};

struct SampleSketchTable {
  SampleSketchKernels<float, float> f32;
  SampleSketchKernels<double, double> f64;
  SampleSketchKernels<Bfloat16, float> bf16;
};

namespace portable {
extern const SampleSketchTable sample_sketch;
}
namespace avx2 {
extern const SampleSketchTable sample_sketch;
}
namespace avx512 {
extern const SampleSketchTable sample_sketch;
}

}  // namespace fudlr
