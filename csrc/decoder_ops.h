// The decoder's ops, whatever the device: arguments are checked and results made here, once, and a
// Backend runs its kernels on them. Arrays of tangents and cotangents have k rows a position:
// [T * k, width], for T primal rows.
#pragma once

#include "abi/library.h"
#include "checks.h"

namespace fudlr {

// A norm's rows, its weight, and (mean x² + ε)^(-1/2) of each row; the last two without gaps.
struct NormArguments {
  const Tensor &x, weight, scale;
};

// What all ops of attention begin with.
struct AttentionArguments {
  const Tensor &q, &k, &v, &query_offsets, &key_offsets, &limits;
  int64_t heads, key_heads;
  double scale;
};

// Made of an op's name and its first argument, a Backend has a method for each op, which is given
// rows, how many tangents there are a position, and what to write to.
template <typename Backend>
struct DecoderOps {
  static ThreeTensors rms_norm(const Tensor& x, const OptionalTensor& added, const Tensor& weight,
                               double eps) {
    constexpr const char* op = "rms_norm";
    check_norm(op, x, weight);
    check_rows(op, x, {{"added", added}}, x.size(0), x.size(1));
    const Backend backend(op, x);
    const Tensor y = empty({x.size(0), x.size(1)}, x);
    const Tensor sum = added ? empty({x.size(0), x.size(1)}, x) : x;
    const Tensor scale = empty({x.size(0)}, x, result_type(x));
    if (x.size(0) > 0) backend.rms_norm({x, weight.contiguous(), scale}, added, eps, sum, y);
    return {y, scale, sum};
  }

  static Tensor rms_norm_tangent(const Tensor& x, const Tensor& weight, const Tensor& scale,
                                 const Tensor& dx, int64_t spare) {
    constexpr const char* op = "rms_norm_tangent";
    const int64_t k = tangents_per_row(op, x, dx);
    check_norm(op, x, weight);
    check_rows(op, x, {{"dx", dx}}, x.size(0) * k, x.size(1));
    check_scale(op, x, scale, x.size(0));
    const Backend backend(op, x);
    const Tensor dy = with_spare(op, dx.size(0), x.size(1), spare, x);
    const NormArguments norm{x, weight.contiguous(), scale.contiguous()};
    if (dx.numel() > 0) backend.rms_norm_tangent(norm, dx, k, dy);
    return dy;
  }

  static Tensor rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& scale,
                                  const Tensor& grads, const OptionalTensor& added,
                                  const OptionalTensor& delta, const OptionalTensor& dx,
                                  int64_t spare) {
    constexpr const char* op = "rms_norm_backward";
    const int64_t k = tangents_per_row(op, x, grads);
    check_rows(op, x, {{"grads", grads}, {"added", added}, {"dx", dx}}, x.size(0) * k, x.size(1));
    check_rows(op, x, {{"delta", delta}}, x.size(0), x.size(1));
    check_norm(op, x, weight);
    check_scale(op, x, scale, x.size(0));
    check_together(op, "delta", delta.has_value(), "dx", dx.has_value());
    const Backend backend(op, x);
    const Tensor result = with_spare(op, grads.size(0), x.size(1), spare, x);
    const NormArguments norm{x, weight.contiguous(), scale.contiguous()};
    if (grads.numel() > 0) backend.rms_norm_backward(norm, grads, added, delta, dx, k, result);
    return result;
  }

  static Tensor swiglu(const Tensor& gu) {
    const int64_t width = check_gated("swiglu", gu);
    const Backend backend("swiglu", gu);
    const Tensor a = empty({gu.size(0), width}, gu);
    if (a.numel() > 0) backend.swiglu(gu, width, a);
    return a;
  }

  static Tensor swiglu_tangent(const Tensor& gu, const Tensor& dgu, int64_t spare) {
    constexpr const char* op = "swiglu_tangent";
    const int64_t k = tangents_per_row(op, gu, dgu), width = check_gated(op, gu);
    check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
    const Backend backend(op, gu);
    const Tensor da = with_spare(op, dgu.size(0), width, spare, gu);
    if (dgu.numel() > 0) backend.swiglu_tangent(gu, dgu, width, k, da);
    return da;
  }

  static Tensor swiglu_backward(const Tensor& gu, const Tensor& grads, const OptionalTensor& delta,
                                const OptionalTensor& dgu, int64_t spare) {
    constexpr const char* op = "swiglu_backward";
    const int64_t k = tangents_per_row(op, gu, grads), width = check_gated(op, gu);
    check_rows(op, gu, {{"grads", grads}}, gu.size(0) * k, width);
    check_rows(op, gu, {{"delta", delta}}, gu.size(0), width);
    check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
    check_together(op, "delta", delta.has_value(), "dgu", dgu.has_value());
    const Backend backend(op, gu);
    const Tensor result = with_spare(op, grads.size(0), gu.size(1), spare, gu);
    if (grads.numel() > 0) backend.swiglu_backward(gu, grads, delta, dgu, width, k, result);
    return result;
  }

  static void rotate_heads(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) {
    const int64_t k = check_rotation("rotate_heads", x, cos, sin);
    const Backend backend("rotate_heads", x);
    if (x.numel() > 0) backend.rotate_heads(x, cos, sin, x.size(1) / cos.size(1), inverse, k);
  }

  static Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                          const Tensor& query_offsets, const Tensor& key_offsets,
                          const Tensor& limits, int64_t heads, int64_t key_heads, double scale) {
    constexpr const char* op = "attention";
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
    const Backend backend(op, q);
    const Tensor out = empty({q.size(0), q.size(1)}, q);
    backend.attention({q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale}, out);
    return out;
  }

  static Tensor attention_tangent(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& query_offsets, const Tensor& key_offsets,
                                  const Tensor& limits, int64_t heads, int64_t key_heads,
                                  double scale, const Tensor& dq, const Tensor& dk,
                                  const Tensor& dv, int64_t spare) {
    constexpr const char* op = "attention_tangent";
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
    const int64_t count = check_attention_tangents(op, q, k, dq, dk, dv);
    const Backend backend(op, q);
    const Tensor out = with_spare(op, dq.size(0), q.size(1), spare, q);
    backend.attention_tangent(
        {q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale}, dq, dk, dv, count,
        out);
    return out;
  }

  static ThreeTensors attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& query_offsets, const Tensor& key_offsets,
                                         const Tensor& limits, int64_t heads, int64_t key_heads,
                                         double scale, const Tensor& grads,
                                         const OptionalTensor& delta, const OptionalTensor& dq,
                                         const OptionalTensor& dk, const OptionalTensor& dv,
                                         int64_t spare) {
    constexpr const char* op = "attention_backward";
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
    const int64_t count = check_attention_backward(op, q, k, grads, delta, dq, dk, dv);
    const Backend backend(op, q);
    const AttentionCotangents to = attention_cotangents(op, q, k, count, spare);
    backend.attention_backward(
        {q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale}, grads, delta, dq,
        dk, dv, count, to);
    return {to.q, to.k, to.v};
  }

  static void register_with(abi::Library& m) {
    m.impl<&rms_norm>("rms_norm");
    m.impl<&rms_norm_tangent>("rms_norm_tangent");
    m.impl<&rms_norm_backward>("rms_norm_backward");
    m.impl<&swiglu>("swiglu");
    m.impl<&swiglu_tangent>("swiglu_tangent");
    m.impl<&swiglu_backward>("swiglu_backward");
    m.impl<&rotate_heads>("rotate_heads");
    m.impl<&attention>("attention");
    m.impl<&attention_tangent>("attention_tangent");
    m.impl<&attention_backward>("attention_backward");
  }
};

}  // namespace fudlr
