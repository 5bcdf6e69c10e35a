// RMS norm, SwiGLU and rotary embedding on the CPU: tensors, threads and registration. Arrays of
// tangents and cotangents have k rows a position: [T * k, width], for T primal rows.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/decoder_kernel.h"
#include "cpu/lines.h"

namespace fudlr {
namespace {

using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <typename Run>
void run_decoder(const at::Tensor& like, Run run) {
  dispatch_real(like, FUDLR_TABLE(decoder), run);
}

Result rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& added,
                const at::Tensor& weight, double eps) {
  check_norm("rms_norm", x, weight);
  check_rows("rms_norm", x, {{"added", added}}, x.size(0), x.size(1));
  const at::Tensor w = weight.contiguous();
  at::Tensor y = at::empty({x.size(0), x.size(1)}, x.options());
  at::Tensor sum = added ? at::empty_like(y) : x;
  at::Tensor scale = at::empty({x.size(0)}, x.options());
  run_decoder(x, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(x.size(0), x.size(1), [&](int64_t begin, int64_t end) {
      kernels.norm(lines<Real>(x), lines<Real>(added), w.const_data_ptr<Real>(), eps, x.size(1),
                   begin, end, added ? mutable_lines<Real>(sum) : Lines<Real>{nullptr, 0},
                   mutable_lines<Real>(y), scale.mutable_data_ptr<Real>());
    });
  });
  return {y, scale, sum};
}

template <typename Real>
NormInput<Real> norm_input(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale) {
  return {lines<Real>(x), weight.const_data_ptr<Real>(), scale.const_data_ptr<Real>(), x.size(1)};
}

at::Tensor rms_norm_tangent(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                            const at::Tensor& dx, int64_t spare) {
  const int64_t k = tangents_per_row("rms_norm_tangent", x, dx);
  check_norm("rms_norm_tangent", x, weight);
  check_rows("rms_norm_tangent", x, {{"dx", dx}}, x.size(0) * k, x.size(1));
  check_scale("rms_norm_tangent", x, scale, x.size(0));
  const at::Tensor w = weight.contiguous(), r = scale.contiguous();
  at::Tensor dy = with_spare("rms_norm_tangent", dx.size(0), x.size(1), spare, x);
  run_decoder(x, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(x.size(0), dx.size(1) * k, [&](int64_t begin, int64_t end) {
      kernels.norm_tangent(norm_input<Real>(x, w, r), lines<Real>(dx), k, begin, end,
                           mutable_lines<Real>(dy));
    });
  });
  return dy;
}

at::Tensor rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                             const at::Tensor& grads, const std::optional<at::Tensor>& added,
                             const std::optional<at::Tensor>& delta,
                             const std::optional<at::Tensor>& dx, int64_t spare) {
  const char* op = "rms_norm_backward";
  const int64_t k = tangents_per_row(op, x, grads);
  check_rows(op, x, {{"grads", grads}, {"added", added}, {"dx", dx}}, x.size(0) * k, x.size(1));
  check_rows(op, x, {{"delta", delta}}, x.size(0), x.size(1));
  check_norm(op, x, weight);
  check_scale(op, x, scale, x.size(0));
  check_together(op, "delta", delta.has_value(), "dx", dx.has_value());
  const at::Tensor w = weight.contiguous(), r = scale.contiguous();
  at::Tensor result = with_spare(op, grads.size(0), x.size(1), spare, x);
  run_decoder(x, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(x.size(0), grads.size(1) * k, [&](int64_t begin, int64_t end) {
      kernels.norm_backward(norm_input<Real>(x, w, r), lines<Real>(grads), lines<Real>(added),
                            lines<Real>(delta), lines<Real>(dx), k, begin, end,
                            mutable_lines<Real>(result));
    });
  });
  return result;
}

at::Tensor swiglu(const at::Tensor& gu) {
  const int64_t width = check_gated("swiglu", gu);
  at::Tensor a = at::empty({gu.size(0), width}, gu.options());
  run_decoder(gu, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(gu.size(0), 8 * width, [&](int64_t begin, int64_t end) {
      kernels.swiglu(lines<Real>(gu), width, begin, end, mutable_lines<Real>(a));
    });
  });
  return a;
}

at::Tensor swiglu_tangent(const at::Tensor& gu, const at::Tensor& dgu, int64_t spare) {
  const int64_t k = tangents_per_row("swiglu_tangent", gu, dgu);
  const int64_t width = check_gated("swiglu_tangent", gu);
  check_rows("swiglu_tangent", gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
  at::Tensor da = with_spare("swiglu_tangent", dgu.size(0), width, spare, gu);
  run_decoder(gu, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(gu.size(0), (8 + k) * width, [&](int64_t begin, int64_t end) {
      kernels.swiglu_tangent(lines<Real>(gu), lines<Real>(dgu), width, k, begin, end,
                             mutable_lines<Real>(da));
    });
  });
  return da;
}

at::Tensor swiglu_backward(const at::Tensor& gu, const at::Tensor& grads,
                           const std::optional<at::Tensor>& delta,
                           const std::optional<at::Tensor>& dgu, int64_t spare) {
  const char* op = "swiglu_backward";
  const int64_t k = tangents_per_row(op, gu, grads), width = check_gated(op, gu);
  check_rows(op, gu, {{"grads", grads}}, gu.size(0) * k, width);
  check_rows(op, gu, {{"delta", delta}}, gu.size(0), width);
  check_rows(op, gu, {{"dgu", dgu}}, gu.size(0) * k, gu.size(1));
  check_together(op, "delta", delta.has_value(), "dgu", dgu.has_value());
  at::Tensor result = with_spare(op, grads.size(0), gu.size(1), spare, gu);
  run_decoder(gu, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(gu.size(0), (8 + 2 * k) * width, [&](int64_t begin, int64_t end) {
      kernels.swiglu_backward(lines<Real>(gu), lines<Real>(grads), lines<Real>(delta),
                              lines<Real>(dgu), width, k, begin, end, mutable_lines<Real>(result));
    });
  });
  return result;
}

void rotate_heads(at::Tensor x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const int64_t k = check_rotation("rotate_heads", x, cos, sin), width = cos.size(1);
  run_decoder(cos, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_positions(cos.size(0), x.size(1) * k, [&](int64_t begin, int64_t end) {
      kernels.rotate(mutable_lines<Real>(x), lines<Real>(cos), lines<Real>(sin), x.size(1) / width,
                     width, inverse, k, begin, end);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(fudlr_decoder, CPU, m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("rms_norm_tangent", &rms_norm_tangent);
  m.impl("rms_norm_backward", &rms_norm_backward);
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_tangent", &swiglu_tangent);
  m.impl("swiglu_backward", &swiglu_backward);
  m.impl("rotate_heads", &rotate_heads);
}

}  // namespace fudlr
