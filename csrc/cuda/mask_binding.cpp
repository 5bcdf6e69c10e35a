// mask_step and mask_sums on a GPU: tensors, scratch memory and registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "checks.h"
#include "cuda/device.h"
#include "cuda/mask.h"

namespace fudlr {
namespace {

gpu::Influence influence_of(const at::Tensor& rows) {
  return {number_of(rows), rows.const_data_ptr(), rows.stride(0), rows.size(0), rows.size(1)};
}

// The sums that run(influences, work, sums, stream) writes.
template <typename Run>
at::Tensor summed(const char* op, const at::Tensor& influence, Run run) {
  const OnDevice device(influence);
  const at::Tensor rows = with_dense_rows(influence);
  const gpu::Influence view = influence_of(rows);
  const at::TensorOptions options = rows.options().dtype(at::kDouble);
  if (view.n == 0) return at::zeros({3 + 2 * view.k}, options);
  at::Tensor sums = at::empty({3 + 2 * view.k}, options);
  const at::Tensor work = scratch(gpu::mask_work(view), sums);
  check_launch(op, run(view, work.mutable_data_ptr<double>(), sums.mutable_data_ptr<double>(),
                       device.stream()));
  return sums;
}

at::Tensor mask_sums(const at::Tensor& influence, const at::Tensor& logits, double shift) {
  constexpr const char* op = "mask_sums";
  check_influence(op, influence, {});
  check_tensor(op, "logits", logits, {influence.size(0)}, result_type(influence), "influence",
               influence);
  return summed(op, influence,
                [&](const gpu::Influence& view, double* work, double* sums, void* stream) {
                  const at::Tensor dense = logits.contiguous();
                  return gpu::mask_sums(view, dense.const_data_ptr(), shift, work, sums, stream);
                });
}

at::Tensor mask_step(const at::Tensor& influence, const at::Tensor& weights, at::Tensor& logits,
                     at::Tensor& first, at::Tensor& second, int64_t step, double price,
                     double shift, double rate, double decay_first, double decay_second, double eps,
                     double limit) {
  constexpr const char* op = "mask_step";
  check_influence(op, influence, {{"logits", logits}, {"first", first}, {"second", second}});
  check_tensor(op, "weights", weights, {influence.size(1)}, result_type(influence), "influence",
               influence);
  check_adam(op, step, decay_first, decay_second, eps, limit, logits);
  const double steps = static_cast<double>(step);
  return summed(op, influence,
                [&](const gpu::Influence& view, double* work, double* sums, void* stream) {
                  const at::Tensor dense = weights.contiguous();
                  const gpu::MaskStep task{dense.const_data_ptr(),
                                           logits.mutable_data_ptr(),
                                           first.mutable_data_ptr(),
                                           second.mutable_data_ptr(),
                                           price,
                                           1 - decay_first,
                                           1 - decay_second,
                                           rate / (1 - std::pow(decay_first, steps)),
                                           1 / (1 - std::pow(decay_second, steps)),
                                           eps,
                                           limit};
                  return gpu::mask_step(view, task, shift, work, sums, stream);
                });
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl("mask_sums", &mask_sums);
  m.impl("mask_step", &mask_step);
}

}  // namespace fudlr
