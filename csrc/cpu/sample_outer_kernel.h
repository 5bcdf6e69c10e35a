// Kernels of the sample_outer family on pointers and sizes, compiled once for each instruction set.
//
// G_i = Σ_t left_t right_tᵀ is symmetric in its two factors, so the kernels know a `narrow` and a
// `wide` one (the narrow one is the LoRA rank's side, whichever of left and right that is): G is
// held in tiles of a few narrow rows × a few vectors of wide columns, in registers while positions
// are added up, and in cache while it is reduced.
#pragma once

#include <cstdint>

#include "cpu/table.h"

namespace fudlr {

// [rows, size]: row p starts at data + p * stride, and its elements follow each other.
template <typename In>
struct Factor {
  const In* data;
  int64_t stride;
  int64_t size;
};

// A matrix or a stack of them, in any layout: element (m, i, j) of narrow row i and wide column j
// is data[m * stack + i * narrow + j * wide].
template <typename Real>
struct Matrices {
  Real* data;
  int64_t stack;
  int64_t narrow;
  int64_t wide;
};

template <typename In>
struct Samples {
  Factor<In> narrow;
  Factor<In> wide;
  const int64_t* offsets;  // [n + 1]
};

// The kernels for inputs of type In, results and sums in Real.
template <typename In, typename Real>
struct SampleOuterKernels {
  // grads[i] = G_i for samples begin <= i < end.
  void (*grads)(const Samples<In>&, int64_t begin, int64_t end, Matrices<Real> grads);

  // Elements that k packed vectors need.
  int64_t (*packed_size)(int64_t narrow, int64_t wide, int64_t k);
  // Puts the vectors into the order in which `dots` reads them.
  void (*pack)(Matrices<const Real> vectors, int64_t narrow, int64_t wide, int64_t k, Real* packed);
  // dots[i * k + j] = <G_i, V_j> for samples begin <= i < end.
  void (*dots)(const Samples<In>&, int64_t begin, int64_t end, const Real* packed, int64_t k,
               Real* dots);

  // Panels of wide columns, the unit in which `sum` is shared out.
  int64_t (*panels)(int64_t wide);
  // sums[m] += Σ_i weights[m * n + i] G_i, in the panels begin <= p < end, for all n samples.
  void (*sum)(const Samples<In>&, int64_t n, const Real* weights, int64_t count, int64_t begin,
              int64_t end, Matrices<Real> sums);
};

struct SampleOuterTable {
  SampleOuterKernels<float, float> f32;
  SampleOuterKernels<double, double> f64;
  SampleOuterKernels<Bfloat16, float> bf16;
};

FUDLR_DECLARE_TABLE(SampleOuterTable, sample_outer);

}  // namespace fudlr
