// The decoder's ops, whatever the device: arguments are checked and results made here, once, and a
// Backend runs its kernels on them. Arrays of tangents and cotangents have k rows a position:
// [T * k, width], for T primal rows.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"

namespace fudlr {

using OptionalTensor = std::optional<at::Tensor>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// A norm's rows, its weight, and (mean x² + ε)^(-1/2) of each row; the last two without gaps.
struct NormArguments {
  const at::Tensor &x, weight, scale;
};

// What all ops of attention begin with.
struct AttentionArguments {
  const at::Tensor &q, &k, &v, &query_offsets, &key_offsets, &limits;
  int64_t heads, key_heads;
  double scale;
};

// Made of an op's name and its first argument, a Backend has a method for each op, which is given
// rows, how many tangents there are a position, and what to write to.
template <typename Backend>
struct DecoderOps {
  static ThreeTensors rms_norm(const at::Tensor& x, const OptionalTensor& added,
                               const at::Tensor& weight, double eps) {
    constexpr const char* op = "rms_norm";
    check_norm(op, x, weight);
    check_rows(op, x, {{"added", added}}, x.size(0), x.size(1));
    const Backend backend(op, x);
    const at::Tensor y = at::empty({x.size(0), x.size(1)}, x.options());
    const at::Tensor sum = added ? at::empty_like(y) : x;
    const at::Tensor scale = at::empty({x.size(0)}, x.options().dtype(result_type(x)));
    if (x.size(0) > 0) backend.rms_norm({x, weight.contiguous(), scale}, added, eps, sum, y);
    return {y, scale, sum};
  }

  static at::Tensor rms_norm_tangent(const at::Tensor& x, const at::Tensor& weight,
                                     const at::Tensor& scale, const at::Tensor& dx, int64_t spare) {
    constexpr const char* op = "rms_norm_tangent";
    const int64_t k = tangents_per_row(op, x, dx);
    check_norm(op, x, weight);
    check_rows(op, x, {{"dx", dx}}, x.size(0) * k, x.size(1));
    check_scale(op, x, scale, x.size(0));
    const Backend backend(op, x);
    const at::Tensor dy = with_spare(op, dx.size(0), x.size(1), spare, x);
    const NormArguments norm{x, weight.contiguous(), scale.contiguous()};
    if (dx.numel() > 0) backend.rms_norm_tangent(norm, dx, k, dy);
    return dy;
  }

  static at::Tensor rms_norm_backward(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& scale, const at::Tensor& grads,
                                      const OptionalTensor& added, const OptionalTensor& delta,
                                      const OptionalTensor& dx, int64_t spare) {
    constexpr const char* op = "rms_norm_backward";
    const int64_t k = tangents_per_row(op, x, grads);
    check_rows(op, x, {{"grads", grads}, {"added", added}, {"dx", dx}}, x.size(0) * k, x.size(1));
    check_rows(op, x, {{"delta", delta}}, x.size(0), x.size(1));
    check_norm(op, x, weight);
    check_scale(op, x, scale, x.size(0));
    check_together(op, "delta", delta.has_value(), "dx", dx.has_value());
    const Backend backend(op, x);
    const at::Tensor result = with_spare(op, grads.size(0), x.size(1), spare, x);
    const NormArguments norm{x, weight.contiguous(), scale.contiguous()};
    if (grads.numel() > 0) backend.rms_norm_backward(norm, grads, added, delta, dx, k, result);
    return result;
  }

  static at::Tensor swiglu(const at::Tensor& gu) {
    const int64_t width = check_gated("swiglu", gu);
    const Backend backend("swiglu", gu);
    const at::Tensor a = at::empty({gu.size(0), width}, gu.options());
    if (a.numel() > 0) backend.swiglu(gu, width, a);
    return a;
  }

  static at::Tensor swiglu_tangent(const at::Tensor& gu, const at::Tensor& dgu, int64_t spare) {
    constexpr const char* op = "swiglu_tangent";
    const int64_t k = tangents_per_row(op, gu, dgu), width = check_gated(op, gu);
    check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
    const Backend backend(op, gu);
    const at::Tensor da = with_spare(op, dgu.size(0), width, spare, gu);
    if (dgu.numel() > 0) backend.swiglu_tangent(gu, dgu, width, k, da);
    return da;
  }

  static at::Tensor swiglu_backward(const at::Tensor& gu, const at::Tensor& grads,
                                    const OptionalTensor& delta, const OptionalTensor& dgu,
                                    int64_t spare) {
    constexpr const char* op = "swiglu_backward";
    const int64_t k = tangents_per_row(op, gu, grads), width = check_gated(op, gu);
    check_rows(op, gu, {{"grads", grads}}, gu.size(0) * k, width);
    check_rows(op, gu, {{"delta", delta}}, gu.size(0), width);
    check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
    check_together(op, "delta", delta.has_value(), "dgu", dgu.has_value());
    const Backend backend(op, gu);
    const at::Tensor result = with_spare(op, grads.size(0), gu.size(1), spare, gu);
    if (grads.numel() > 0) backend.swiglu_backward(gu, grads, delta, dgu, width, k, result);
    return result;
  }

  static void rotate_heads(at::Tensor x, const at::Tensor& cos, const at::Tensor& sin,
                           bool inverse) {
    const int64_t k = check_rotation("rotate_heads", x, cos, sin);
    const Backend backend("rotate_heads", x);
    if (x.numel() > 0) backend.rotate_heads(x, cos, sin, x.size(1) / cos.size(1), inverse, k);
  }

  static at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                              const at::Tensor& limits, int64_t heads, int64_t key_heads,
                              double scale) {
    constexpr const char* op = "attention";
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
    const Backend backend(op, q);
    const at::Tensor out = at::empty({q.size(0), q.size(1)}, q.options());
    backend.attention({q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale}, out);
    return out;
  }

  static at::Tensor attention_tangent(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& query_offsets,
                                      const at::Tensor& key_offsets, const at::Tensor& limits,
                                      int64_t heads, int64_t key_heads, double scale,
                                      const at::Tensor& dq, const at::Tensor& dk,
                                      const at::Tensor& dv, int64_t spare) {
    constexpr const char* op = "attention_tangent";
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
    const int64_t count = check_attention_tangents(op, q, k, dq, dk, dv);
    const Backend backend(op, q);
    const at::Tensor out = with_spare(op, dq.size(0), q.size(1), spare, q);
    backend.attention_tangent(
        {q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale}, dq, dk, dv, count,
        out);
    return out;
  }

  static ThreeTensors attention_backward(const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const at::Tensor& query_offsets,
                                         const at::Tensor& key_offsets, const at::Tensor& limits,
                                         int64_t heads, int64_t key_heads, double scale,
                                         const at::Tensor& grads, const OptionalTensor& delta,
                                         const OptionalTensor& dq, const OptionalTensor& dk,
                                         const OptionalTensor& dv, int64_t spare) {
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

  static void register_with(torch::Library& m) {
    m.impl("rms_norm", &rms_norm);
    m.impl("rms_norm_tangent", &rms_norm_tangent);
    m.impl("rms_norm_backward", &rms_norm_backward);
    m.impl("swiglu", &swiglu);
    m.impl("swiglu_tangent", &swiglu_tangent);
    m.impl("swiglu_backward", &swiglu_backward);
    m.impl("rotate_heads", &rotate_heads);
    m.impl("attention", &attention);
    m.impl("attention_tangent", &attention_tangent);
    m.impl("attention_backward", &attention_backward);
  }
};

}  // namespace fudlr
