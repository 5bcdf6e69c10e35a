// Launchers of the decoder kernels: pointers, sizes and a stream, no tensors. Numbers are float,
// double, or of 16 bits.
//
// Position t has one row of a primal array, and k rows, t * k + j, of an array of tangents or
// cotangents. Each launcher returns null, or what the launch had to say against itself.
#pragma once

#include <cstdint>

#include "cuda/number.h"

namespace fudlr::gpu {

// Rows of numbers without gaps, `stride` apart; null where the array is absent.
struct Lines {
  const void* data = nullptr;
  int64_t stride = 0;
};
struct OutLines {
  void* data = nullptr;
  int64_t stride = 0;
};

struct Norm {
  Number number;  // f32, f64, bf16, f16
  Lines x;
  const void* weight;
  const void* scale;  // (mean x² + ε)^(-1/2) of each row; float, or double for f64
  int64_t rows, width;
};

// sum = x + added (where given); scale = (mean sum² + eps)^(-1/2); y = weight · sum · scale.
const char* rms_norm(const Norm& norm, const Lines& added, double eps, const OutLines& sum,
                     const OutLines& y, void* scale, void* stream);
// y' = weight · (scale · x' + scale' · x)
const char* rms_norm_tangent(const Norm& norm, const Lines& dx, int64_t k, const OutLines& dy,
                             void* stream);
// Cotangents of x for k cotangents of y, plus `added`. Where `delta` and `dx` are given, these are
// the derivatives of such a backward along dx, with delta the primal cotangent of y.
const char* rms_norm_backward(const Norm& norm, const Lines& grads, const Lines& added,
                              const Lines& delta, const Lines& dx, int64_t k,
                              const OutLines& result, void* stream);

// Rows [g | u], each of `width` numbers.
struct Gated {
  Number number;
  Lines gu;
  int64_t rows, width;
};
// a = silu(g) u
const char* swiglu(const Gated& in, const OutLines& a, void* stream);
const char* swiglu_tangent(const Gated& in, const Lines& dgu, int64_t k, const OutLines& da,
                           void* stream);
// As rms_norm_backward: cotangents of [g | u], or their derivatives along dgu.
const char* swiglu_backward(const Gated& in, const Lines& grads, const Lines& delta,
                            const Lines& dgu, int64_t k, const OutLines& result, void* stream);

// x[head] = x[head] · cos + (-second half, first half) · sin in place; the transpose if inverse.
// cos and sin [rows, width], x [rows · k, heads · width].
const char* rotate_heads(Number number, const OutLines& x, const Lines& cos, const Lines& sin,
                         int64_t rows, int64_t heads, int64_t width, bool inverse, int64_t k,
                         void* stream);

}  // namespace fudlr::gpu
