// Kernels of a recording on pointers and sizes, compiled once for each instruction set: sketches of
// samples' gradients, and rows rounded to int8.
#pragma once

#include <cstdint>

#include "cpu/sample_outer_kernel.h"

namespace fudlr {

// Samples' factors left [T, a] and right [T, b], and directions [count, a] or [count, b] of the
// projected one.
template <typename Real>
struct SketchTask {
  Factor<Real> left, right;
  const int64_t* offsets;
  const Real* directions;
  int64_t count;
  bool of_left;
};

template <typename Real>
struct SketchKernels {
  // rows[i] += Σ_t (P left_t) right_tᵀ, or Σ_t left_t (P right_t)ᵀ, for samples begin <= i < end.
  void (*sketch)(const SketchTask<Real>&, int64_t begin, int64_t end, Real* rows, int64_t stride);
};

struct SketchTable {
  SketchKernels<float> f32;
  SketchKernels<double> f64;
  // codes = round(x / scale), scale = max |x| / 127 of a row's run of 128 columns; rows begin ..
  // end.
  void (*encode)(const float* rows, int64_t begin, int64_t end, int64_t p, int8_t* codes,
                 float* scales);
};

FUDLR_DECLARE_TABLE(SketchTable, sketch);

}  // namespace fudlr
