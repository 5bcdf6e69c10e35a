// linear_cross_entropy and its backward on the CPU: a softmax over a vocabulary is one over a
// catalogue, so that the passes are those of catalogue_mean, without value columns; what the target
// adds is one product a row.
//
//   ℓ_i = log Σ_v exp(h_i · w_v) − h_i · w_t
//   ∂ℓ/∂h_i = Σ_v p_iv w_v − w_t      ∂ℓ/∂w_v = Σ_i (p_iv − [v = t_i]) h_i
#include <ATen/Dispatch.h>
#include <ATen/ops/_unique.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>

#include "checks.h"
#include "cpu/catalogue_passes.h"

namespace fudlr {
namespace {

const OptionalTensor kNothing;

// Targets that are left out get row 0, and a factor of 0.
struct Targets {
  at::Tensor rows;   // int64 [m]
  at::Tensor given;  // 1 or 0 in the dtype of results [m]
};

Targets find(const at::Tensor& targets, const at::Tensor& like) {
  const at::Tensor used = targets.ne(kIgnoredTarget);
  return {targets.mul(used), used.to(like.scalar_type())};
}

// Subtracts changes [m, d] from rows [m] of a gradient. A word that is many rows' target would lose
// their sum in bfloat16, one rounding each: they are summed in their own dtype first.
void take_off_targets(at::Tensor& gradient, const at::Tensor& rows, const at::Tensor& changes) {
  if (gradient.scalar_type() == changes.scalar_type()) {
    gradient.index_add_(0, rows, changes, -1);
    return;
  }
  const auto [words, index] = at::_unique(rows, /*sorted=*/true, /*return_inverse=*/true);
  at::Tensor sums = gradient.index_select(0, words).to(changes.scalar_type());
  sums.index_add_(0, index, changes, -1);
  gradient.index_copy_(0, words, sums.to(gradient.scalar_type()));
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& targets) {
  check_cross_entropy("linear_cross_entropy", hidden, weight, targets);
  const at::Tensor lse =
      std::get<1>(catalogue_mean_and_lse({hidden, weight, kNothing, kNothing, 1.0}, kNothing, 0));
  const Targets found = find(targets, lse);
  const at::Tensor own = weight.index_select(0, found.rows).to(lse.scalar_type());
  const at::Tensor rows = hidden.contiguous();
  at::Tensor loss = at::zeros_like(lse);
  const int64_t width = rows.size(1);
  AT_DISPATCH_FLOATING_TYPES(lse.scalar_type(), "linear_cross_entropy", [&] {
    const scalar_t* used = found.given.const_data_ptr<scalar_t>();
    const scalar_t* h = rows.const_data_ptr<scalar_t>();
    const scalar_t* w = own.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < rows.size(0); ++i, h += width, w += width) {
      if (used[i] == 0) continue;
      double score = 0;
      for (int64_t j = 0; j < width; ++j) score += static_cast<double>(h[j]) * w[j];
      loss.mutable_data_ptr<scalar_t>()[i] =
          static_cast<scalar_t>(lse.const_data_ptr<scalar_t>()[i] - score);
    }
  });
  return {loss, lse};
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
    const at::Tensor& lse, const at::Tensor& grad, bool need_hidden, bool need_weight) {
  constexpr const char* op = "linear_cross_entropy_backward";
  check_cross_entropy(op, hidden, weight, targets);
  check_tensor(op, "lse", lse, {hidden.size(0)}, result_type(weight), "weight", weight);
  check_tensor(op, "grad", grad, {hidden.size(0)}, result_type(weight), "weight", weight);
  const Targets found = find(targets, lse);
  const at::Tensor cotangent = grad.mul(found.given);
  const CatalogueCotangents from{at::zeros({hidden.size(0), 0}, hidden.options()), cotangent.neg(),
                                 lse.contiguous()};
  auto [to_hidden, to_weight, none] = catalogue_gradients(
      {hidden, weight, kNothing, kNothing, 1.0}, kNothing, from, {need_hidden, need_weight, false});
  const at::Tensor column = cotangent.unsqueeze(1);
  if (need_hidden) to_hidden.addcmul_(weight.index_select(0, found.rows).to(cotangent), column, -1);
  if (need_weight) take_off_targets(to_weight, found.rows, hidden.mul(column));
  return {to_hidden, to_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(fudlr, CPU, m) { m.impl("linear_cross_entropy", &linear_cross_entropy); }

TORCH_LIBRARY_IMPL(fudlr_grad, CPU, m) {
  m.impl("linear_cross_entropy_backward", &linear_cross_entropy_backward);
}

}  // namespace fudlr
