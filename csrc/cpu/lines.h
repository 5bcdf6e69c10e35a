// What the decoder's ops share on the host: rows with gaps between them, k of them a position in
// arrays of tangents, and the checks of both.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "cpu/choose.h"
#include "cpu/decoder_kernel.h"

namespace fudlr {

template <typename Real>
Lines<const Real> lines(const at::Tensor& rows) {
  return {rows.const_data_ptr<Real>(), rows.stride(0)};
}
template <typename Real>
Lines<const Real> lines(const std::optional<at::Tensor>& rows) {
  return rows ? lines<Real>(*rows) : Lines<const Real>{nullptr, 0};
}
template <typename Real>
Lines<Real> mutable_lines(at::Tensor& rows) {
  return {rows.mutable_data_ptr<Real>(), rows.stride(0)};
}

// Calls run(kernels, Real{}) for float32 or float64.
template <typename Table, typename Run>
void dispatch_real(const at::Tensor& like, const Table& table, Run run) {
  if (like.scalar_type() == at::kDouble) return run(table.f64, double{});
  TORCH_CHECK_VALUE(like.scalar_type() == at::kFloat, "fudlr_ext has no CPU kernel for ",
                    like.scalar_type());
  run(table.f32, float{});
}

// Calls run(begin, end) for parts of `rows` positions, each of which is `work` steps.
template <typename Run>
void for_positions(int64_t rows, int64_t work, Run run) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kThreadWork / std::max<int64_t>(work, 1)), run);
}

}  // namespace fudlr
