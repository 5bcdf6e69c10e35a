// mask_step and mask_sums on the CPU: tensors, threads and registration.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "cpu/choose.h"
#include "cpu/mask_kernel.h"

namespace fudlr {
namespace {

// Calls run(begin, end, sums) for chunks of n samples shared between threads, and adds their sums
// in the samples' order, so that no number depends on the threads.
template <typename Run>
at::Tensor total(int64_t n, int64_t k, const at::Tensor& like, Run run) {
  const int64_t size = kMaskSums + 2 * k;
  at::Tensor sums = at::zeros({size}, like.options().dtype(at::kDouble));
  const int64_t chunks = (n + kMaskChunk - 1) / kMaskChunk;
  std::vector<double> partial(chunks * size);
  // An exponential, a root and what surrounds them count as forty multiply-adds.
  const int64_t grain = std::max<int64_t>(1, kThreadWork / (kMaskChunk * (40 + 4 * k)));
  at::parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      run(i * kMaskChunk, std::min((i + 1) * kMaskChunk, n), partial.data() + i * size);
    }
  });
  double* to = sums.mutable_data_ptr<double>();
  for (int64_t i = 0; i < chunks; ++i) {
    for (int64_t j = 0; j < size; ++j) to[j] += partial[i * size + j];
  }
  return sums;
}

template <typename In>
Influences<In> influences(const at::Tensor& rows) {
  return {static_cast<const In*>(rows.const_data_ptr()), rows.stride(0), rows.size(1)};
}

at::Tensor mask_sums(const at::Tensor& influence, const at::Tensor& logits, double shift) {
  constexpr const char* op = "mask_sums";
  check_influence(op, influence, {});
  check_tensor(op, "logits", logits, {influence.size(0)}, result_type(influence), "influence",
               influence);
  const at::Tensor rows = with_dense_rows(influence), dense = logits.contiguous();
  at::Tensor sums;
  dispatch(influence.scalar_type(), FUDLR_TABLE(mask_steps),
           [&](const auto& kernels, auto in, auto real) {
             using Real = decltype(real);
             const auto view = influences<decltype(in)>(rows);
             const Real* z = dense.const_data_ptr<Real>();
             sums = total(rows.size(0), rows.size(1), rows,
                          [&](int64_t begin, int64_t end, double* to) {
                            kernels.sums(view, z, static_cast<Real>(shift), begin, end, to);
                          });
           });
  return sums;
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
  const at::Tensor rows = with_dense_rows(influence), dense = weights.contiguous();
  at::Tensor sums;
  dispatch(influence.scalar_type(), FUDLR_TABLE(mask_steps),
           [&](const auto& kernels, auto in, auto real) {
             using Real = decltype(real);
             const auto view = influences<decltype(in)>(rows);
             const double steps = static_cast<double>(step);
             const MaskStep<Real> task{
                 dense.const_data_ptr<Real>(),
                 logits.mutable_data_ptr<Real>(),
                 first.mutable_data_ptr<Real>(),
                 second.mutable_data_ptr<Real>(),
                 static_cast<Real>(price),
                 static_cast<Real>(1 - decay_first),
                 static_cast<Real>(1 - decay_second),
                 static_cast<Real>(rate / (1 - std::pow(decay_first, steps))),
                 static_cast<Real>(1 / (1 - std::pow(decay_second, steps))),
                 static_cast<Real>(eps),
                 static_cast<Real>(limit),
             };
             sums = total(rows.size(0), rows.size(1), rows,
                          [&](int64_t begin, int64_t end, double* to) {
                            kernels.step(view, task, static_cast<Real>(shift), begin, end, to);
                          });
           });
  return sums;
}

}  // namespace

TORCH_LIBRARY_IMPL(fudlr, CPU, m) {
  m.impl("mask_sums", &mask_sums);
  m.impl("mask_step", &mask_step);
}

}  // namespace fudlr
