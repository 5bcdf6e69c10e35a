// linear_cross_entropy and its backward on a GPU: tensors, scratch memory and registration.
#include <ATen/ops/empty.h>

#include <tuple>

#include "checks.h"
#include "cuda/catalogue_passes.h"
#include "cuda/cross_entropy.h"

namespace fudlr {
namespace {

const OptionalTensor kNoneSeen;

// The head as the launchers take it, its targets, and the verdict on them under way.
class HeadOnDevice {
 public:
  HeadOnDevice(const char* op, const at::Tensor& hidden, const at::Tensor& weight,
               const at::Tensor& targets, const OnDevice& device)
      : view_(op, hidden, weight, 1.0, kNoneSeen, kNoneSeen, device),
        targets_(targets.contiguous()) {
    if (targets_.numel() == 0) return;
    at::Tensor bad = at::empty({1}, targets_.options().dtype(at::kInt));
    view_.set_bad(bad);
    check_launch(
        op, gpu::check_targets(*view_, targets_of(), bad.mutable_data_ptr<int>(), device.stream()));
  }

  const CatalogueOnDevice& view() const { return view_; }
  gpu::Targets targets_of() const { return {targets_.const_data_ptr<int64_t>(), kIgnoredTarget}; }

 private:
  CatalogueOnDevice view_;
  at::Tensor targets_;
};

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& targets) {
  constexpr const char* op = "linear_cross_entropy";
  check_cross_entropy(op, hidden, weight, targets);
  const OnDevice device(weight);
  const HeadOnDevice head(op, hidden, weight, targets, device);
  const at::Tensor nothing = at::empty({weight.size(0), 0}, hidden.options());
  const at::Tensor lse =
      std::get<1>(catalogue_mean_and_lse(op, head.view(), hidden, nothing, device));
  at::Tensor loss = at::empty({hidden.size(0)}, hidden.options());
  if (loss.numel() == 0) return {loss, lse};
  check_launch(op, gpu::target_loss(*head.view(), head.targets_of(), lse.const_data_ptr(),
                                    loss.mutable_data_ptr(), device.stream()));
  return {loss, lse};
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
    const at::Tensor& lse, const at::Tensor& grad, bool need_hidden, bool need_weight) {
  constexpr const char* op = "linear_cross_entropy_backward";
  check_cross_entropy(op, hidden, weight, targets);
  check_tensor(op, "lse", lse, {hidden.size(0)}, result_type(weight), "weight", weight);
  check_tensor(op, "grad", grad, {hidden.size(0)}, result_type(weight), "weight", weight);
  const OnDevice device(weight);
  const HeadOnDevice head(op, hidden, weight, targets, device);
  const at::Tensor shift = grad.mul(targets.ne(kIgnoredTarget)).neg_();
  const at::Tensor sums = lse.contiguous();
  const gpu::Cotangents from{
      nullptr, nullptr, 0, shift.const_data_ptr(), sums.const_data_ptr(), head.targets_of().rows};
  const auto make = [&](gpu::Gradient of, bool needed, const at::Tensor& like) {
    return catalogue_gradient(op, head.view(), from, of, needed, like.size(0), like.size(1), like,
                              hidden, device);
  };
  return {make(gpu::Gradient::users, need_hidden, hidden),
          make(gpu::Gradient::items, need_weight, weight)};
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) { m.impl("linear_cross_entropy", &linear_cross_entropy); }

FUDLR_GPU_LIBRARY(fudlr_grad, m) {
  m.impl("linear_cross_entropy_backward", &linear_cross_entropy_backward);
}

}  // namespace fudlr
