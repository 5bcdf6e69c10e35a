// Kernels of an unrolled LoRA training on pointers and sizes, compiled once for each instruction
// set: a step of Adam with its derivative, products with a projection, and how a batch's gradient
// answers to a shift. Formulas: fudlr_ext/reference/unroll.py. Every number is a sum in one order.
#pragma once

#include <cstdint>

#include "cpu/table.h"

namespace fudlr {

// One step: options [10] of the ops, as they are handed over.
struct AdamOptions {
  double rate, beta1, beta2, eps, correction1, correction2, l2, clip, coupled, kept;
};

// The training around a step [d]; `mean` and `square` are those after it.
template <typename Real>
struct AdamPlace {
  const Real *theta, *start, *gradient, *mean, *square;
  int64_t d;
};

// Changes of a state, or what depends on it, [k, d] each.
template <typename Real>
struct AdamLines {
  Real *theta, *mean, *square;
};

// A layer's A [rank, in] and B [out, rank] at their places in a flat vector, as a table has them.
struct LoraLayer {
  int64_t a, b, rank, in, out;
};

// A matrix [rows, columns] at `flat`, its directions [count, width] at `factor` of their own
// array, and its sketch at `sketch`: B's first side is projected, A's second.
struct SketchedMatrix {
  int64_t flat, rows, columns, factor, count, sketch, is_b;
};

// θ, and what else is known of it; (A Aᵀ)⁻¹ and (Bᵀ B)⁺ lie layer after layer.
template <typename Real>
struct LoraPoint {
  const LoraLayer* layers;
  const Real *theta, *inverse_a, *inverse_b;
  int64_t d;
};

template <typename Real>
struct UnrollKernels {
  // Of `clip` the factor of the gradient, and its norm where it is clipped, else 0.
  void (*clipping)(const AdamOptions&, const AdamPlace<Real>&, double* factor, double* norm);
  // The state after the step, of `before`'s mean and square, for numbers begin .. end.
  void (*move)(const AdamOptions&, const AdamPlace<Real>& before, double factor, int64_t begin,
               int64_t end, AdamLines<Real> after);
  // The step's derivative, and its transpose; `change` [k, d] is read by the one and written by
  // the other. `dots` [k]: add only what the clipped gradient's norm needs; else it is read.
  void (*tangent)(const AdamOptions&, const AdamPlace<Real>&, double factor, int64_t k,
                  AdamLines<const Real> before, const Real* change, double* dots, bool only_dots,
                  AdamLines<Real> after);
  void (*transposed)(const AdamOptions&, const AdamPlace<Real>&, double factor, int64_t k,
                     AdamLines<const Real> later, Real* change, double* dots, bool only_dots,
                     AdamLines<Real> earlier);

  // S v [k, p] of vectors [k, d], and Sᵀ s, of matrices begin .. end.
  void (*project)(const SketchedMatrix*, int64_t begin, int64_t end, const Real* factors,
                  const Real* vectors, int64_t k, int64_t d, int64_t p, Real* out);
  void (*lift)(const SketchedMatrix*, int64_t begin, int64_t end, const Real* factors,
               const Real* sketches, int64_t k, int64_t d, int64_t p, Real* out);

  // Adds to shifts [k, d] what b a adds, by B's view and by A's; and (bᵀ Ĝ, Ĝ aᵀ) for shifts [k,
  // d], Ĝ's views being `total`, each shift's `stride` behind the one before or all the same (0);
  // of layers begin .. end.
  void (*seen)(const LoraPoint<Real>&, int64_t begin, int64_t end, const Real* shifts, int64_t k,
               Real* out);
  void (*views)(const LoraPoint<Real>&, int64_t begin, int64_t end, const Real* total,
                int64_t stride, const Real* shifts, int64_t k, Real* out);
};

struct UnrollTable {
  UnrollKernels<float> f32;
  UnrollKernels<double> f64;
};

FUDLR_DECLARE_TABLE(UnrollTable, unroll);

}  // namespace fudlr
