// Kernels of a transformer's elementwise parts on pointers and sizes: RMS norm, SwiGLU and rotary
// embedding, each with its derivative along k tangents, its backward, and the backward's
// derivative. Compiled once for each instruction set.
//
// Position t has one row of a primal array, and k rows, t * k + j, of an array of tangents or
// cotangents, so that a primal row is read once for all of them.
#pragma once

#include <cstdint>

#include "cpu/table.h"

namespace fudlr {

// Rows of numbers without gaps, `stride` apart; null where the array is absent.
template <typename Real>
struct Lines {
  Real* data;
  int64_t stride;

  Real* at(int64_t row) const { return data == nullptr ? nullptr : data + row * stride; }
};

// What a row's numbers are summed in.
template <typename Real>
struct SumOf {
  using Type = Real;
};
template <>
struct SumOf<Bfloat16> {
  using Type = float;
};
template <typename Real>
using Sum = typename SumOf<Real>::Type;

template <typename Real>
struct NormInput {
  Lines<const Real> x;
  const Real* weight;
  const Sum<Real>* scale;  // (mean x² + ε)^(-1/2) of each row
  int64_t width;
};

template <typename Real>
struct DecoderKernels {
  // sum = x + added (where given); scale = (mean sum² + eps)^(-1/2); y = weight · sum · scale.
  void (*norm)(Lines<const Real> x, Lines<const Real> added, const Real* weight, double eps,
               int64_t width, int64_t begin, int64_t end, Lines<Real> sum, Lines<Real> y,
               Sum<Real>* scale);
  // y' = weight · (scale · x' + scale' · x)
  void (*norm_tangent)(const NormInput<Real>&, Lines<const Real> dx, int64_t k, int64_t begin,
                       int64_t end, Lines<Real> dy);
  // Cotangents of x for k cotangents of y, plus `added`. Where `delta` and `dx` are given, these
  // are the derivatives of such a backward along dx, with delta the primal cotangent of y.
  void (*norm_backward)(const NormInput<Real>&, Lines<const Real> grads, Lines<const Real> added,
                        Lines<const Real> delta, Lines<const Real> dx, int64_t k, int64_t begin,
                        int64_t end, Lines<Real> result);

  // a = silu(g) u of rows [g | u], each of `width` numbers.
  void (*swiglu)(Lines<const Real> gu, int64_t width, int64_t begin, int64_t end, Lines<Real> a);
  void (*swiglu_tangent)(Lines<const Real> gu, Lines<const Real> dgu, int64_t width, int64_t k,
                         int64_t begin, int64_t end, Lines<Real> da);
  // As norm_backward: cotangents of [g | u], or their derivatives along dgu.
  void (*swiglu_backward)(Lines<const Real> gu, Lines<const Real> grads, Lines<const Real> delta,
                          Lines<const Real> dgu, int64_t width, int64_t k, int64_t begin,
                          int64_t end, Lines<Real> result);

  // x[head] = x[head] · cos + (-second half, first half) · sin in place; the transpose if inverse.
  void (*rotate)(Lines<Real> x, Lines<const Real> cos, Lines<const Real> sin, int64_t heads,
                 int64_t width, bool inverse, int64_t k, int64_t begin, int64_t end);
};

struct DecoderTable {
  DecoderKernels<float> f32;
  DecoderKernels<double> f64;
};

FUDLR_DECLARE_TABLE(DecoderTable, decoder);
FUDLR_DECLARE_TABLE(DecoderKernels<Bfloat16>, decoder_bf16);

}  // namespace fudlr
