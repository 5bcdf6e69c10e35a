// RMS norm, SwiGLU and rotary embedding on a GPU: tensors and registration. Arrays of tangents and
// cotangents have k rows a position: [T * k, width], for T primal rows.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cuda/decoder.h"
#include "cuda/device.h"

namespace fudlr {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

gpu::Lines lines(const at::Tensor& rows) { return {rows.const_data_ptr(), rows.stride(0)}; }
gpu::Lines lines(const OptionalTensor& rows) { return rows ? lines(*rows) : gpu::Lines{}; }
gpu::OutLines out_lines(const at::Tensor& rows) {
  return {rows.mutable_data_ptr(), rows.stride(0)};
}

gpu::Norm norm_of(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale) {
  return {number_of(x),           lines(x),  weight.const_data_ptr(),
          scale.const_data_ptr(), x.size(0), x.size(1)};
}

Result rms_norm(const at::Tensor& x, const OptionalTensor& added, const at::Tensor& weight,
                double eps) {
  constexpr const char* op = "rms_norm";
  check_norm(op, x, weight);
  check_rows(op, x, {{"added", added}}, x.size(0), x.size(1));
  const OnDevice device(x);
  const at::Tensor w = weight.contiguous();
  at::Tensor y = at::empty({x.size(0), x.size(1)}, x.options());
  at::Tensor sum = added ? at::empty_like(y) : x;
  at::Tensor scale = at::empty({x.size(0)}, x.options().dtype(result_type(x)));
  if (x.size(0) == 0) return {y, scale, sum};
  check_launch(op, gpu::rms_norm(norm_of(x, w, scale), lines(added), eps,
                                 added ? out_lines(sum) : gpu::OutLines{}, out_lines(y),
                                 scale.mutable_data_ptr(), device.stream()));
  return {y, scale, sum};
}

at::Tensor rms_norm_tangent(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                            const at::Tensor& dx, int64_t spare) {
  constexpr const char* op = "rms_norm_tangent";
  const int64_t k = tangents_per_row(op, x, dx);
  check_norm(op, x, weight);
  check_rows(op, x, {{"dx", dx}}, x.size(0) * k, x.size(1));
  check_scale(op, x, scale, x.size(0));
  const OnDevice device(x);
  const at::Tensor w = weight.contiguous(), r = scale.contiguous();
  at::Tensor dy = with_spare(op, dx.size(0), x.size(1), spare, x);
  if (dx.numel() == 0) return dy;
  check_launch(
      op, gpu::rms_norm_tangent(norm_of(x, w, r), lines(dx), k, out_lines(dy), device.stream()));
  return dy;
}

at::Tensor rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                             const at::Tensor& grads, const OptionalTensor& added,
                             const OptionalTensor& delta, const OptionalTensor& dx, int64_t spare) {
  constexpr const char* op = "rms_norm_backward";
  const int64_t k = tangents_per_row(op, x, grads);
  check_rows(op, x, {{"grads", grads}, {"added", added}, {"dx", dx}}, x.size(0) * k, x.size(1));
  check_rows(op, x, {{"delta", delta}}, x.size(0), x.size(1));
  check_norm(op, x, weight);
  check_scale(op, x, scale, x.size(0));
  check_together(op, "delta", delta.has_value(), "dx", dx.has_value());
  const OnDevice device(x);
  const at::Tensor w = weight.contiguous(), r = scale.contiguous();
  at::Tensor result = with_spare(op, grads.size(0), x.size(1), spare, x);
  if (grads.numel() == 0) return result;
  check_launch(op,
               gpu::rms_norm_backward(norm_of(x, w, r), lines(grads), lines(added), lines(delta),
                                      lines(dx), k, out_lines(result), device.stream()));
  return result;
}

gpu::Gated gated(const at::Tensor& gu) {
  return {number_of(gu), lines(gu), gu.size(0), gu.size(1) / 2};
}

at::Tensor swiglu(const at::Tensor& gu) {
  constexpr const char* op = "swiglu";
  const int64_t width = check_gated(op, gu);
  const OnDevice device(gu);
  at::Tensor a = at::empty({gu.size(0), width}, gu.options());
  if (a.numel() == 0) return a;
  check_launch(op, gpu::swiglu(gated(gu), out_lines(a), device.stream()));
  return a;
}

at::Tensor swiglu_tangent(const at::Tensor& gu, const at::Tensor& dgu, int64_t spare) {
  constexpr const char* op = "swiglu_tangent";
  const int64_t k = tangents_per_row(op, gu, dgu), width = check_gated(op, gu);
  check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
  const OnDevice device(gu);
  at::Tensor da = with_spare(op, dgu.size(0), width, spare, gu);
  if (dgu.numel() == 0) return da;
  check_launch(op, gpu::swiglu_tangent(gated(gu), lines(dgu), k, out_lines(da), device.stream()));
  return da;
}

at::Tensor swiglu_backward(const at::Tensor& gu, const at::Tensor& grads,
                           const OptionalTensor& delta, const OptionalTensor& dgu, int64_t spare) {
  constexpr const char* op = "swiglu_backward";
  const int64_t k = tangents_per_row(op, gu, grads), width = check_gated(op, gu);
  check_rows(op, gu, {{"grads", grads}}, gu.size(0) * k, width);
  check_rows(op, gu, {{"delta", delta}}, gu.size(0), width);
  check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
  check_together(op, "delta", delta.has_value(), "dgu", dgu.has_value());
  const OnDevice device(gu);
  at::Tensor result = with_spare(op, grads.size(0), gu.size(1), spare, gu);
  if (grads.numel() == 0) return result;
  check_launch(op, gpu::swiglu_backward(gated(gu), lines(grads), lines(delta), lines(dgu), k,
                                        out_lines(result), device.stream()));
  return result;
}

void rotate_heads(at::Tensor x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  constexpr const char* op = "rotate_heads";
  const int64_t k = check_rotation(op, x, cos, sin), width = cos.size(1);
  const OnDevice device(x);
  if (x.numel() == 0) return;
  check_launch(op,
               gpu::rotate_heads(number_of(x), out_lines(x), lines(cos), lines(sin), cos.size(0),
                                 x.size(1) / width, width, inverse, k, device.stream()));
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr_decoder, m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("rms_norm_tangent", &rms_norm_tangent);
  m.impl("rms_norm_backward", &rms_norm_backward);
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_tangent", &swiglu_tangent);
  m.impl("swiglu_backward", &swiglu_backward);
  m.impl("rotate_heads", &rotate_heads);
}

}  // namespace fudlr
