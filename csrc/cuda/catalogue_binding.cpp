// catalogue_mean, its backward, catalogue_share and catalogue_top on a GPU: tensors, scratch memory
// and registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/sort.h>

#include <tuple>

#include "checks.h"
#include "cuda/catalogue_passes.h"

namespace fudlr {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

std::tuple<at::Tensor, at::Tensor> catalogue_mean(const at::Tensor& users, const at::Tensor& items,
                                                  const at::Tensor& values, double scale,
                                                  const OptionalTensor& seen_offsets,
                                                  const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_mean";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, scale, seen_offsets, seen_items, device);
  check_tensor(op, "values", values, {items.size(0), -1}, result_type(items), "items", items);
  return catalogue_mean_and_lse(op, view, users, values, device);
}

Gradients catalogue_mean_backward(const at::Tensor& users, const at::Tensor& items,
                                  const at::Tensor& values, double scale,
                                  const OptionalTensor& seen_offsets,
                                  const OptionalTensor& seen_items, const at::Tensor& mean,
                                  const at::Tensor& lse, const at::Tensor& grad_mean,
                                  const at::Tensor& grad_lse, bool need_users, bool need_items,
                                  bool need_values) {
  constexpr const char* op = "catalogue_mean_backward";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, scale, seen_offsets, seen_items, device);
  const int64_t n = users.size(0), c = values.size(1), width = items.size(1);
  const at::ScalarType real = result_type(items);
  check_tensor(op, "values", values, {items.size(0), -1}, real, "items", items);
  check_tensor(op, "mean", mean, {n, c}, real, "items", items);
  check_tensor(op, "lse", lse, {n}, real, "items", items);
  check_tensor(op, "grad_mean", grad_mean, {n, c}, real, "items", items);
  check_tensor(op, "grad_lse", grad_lse, {n}, real, "items", items);
  const at::Tensor weights = grad_mean.contiguous(), dense = values.contiguous();
  const at::Tensor shift = grad_mean.mul(mean).sum(1).sub_(grad_lse), sums = lse.contiguous();
  const gpu::Cotangents from{dense.const_data_ptr(), weights.const_data_ptr(), c,
                             shift.const_data_ptr(), sums.const_data_ptr(),    nullptr};
  const auto make = [&](gpu::Gradient of, bool needed, int64_t rows, int64_t columns,
                        const at::Tensor& like) {
    return catalogue_gradient(op, view, from, of, needed, rows, columns, like, users, device);
  };
  return {make(gpu::Gradient::users, need_users, n, width, users),
          make(gpu::Gradient::items, need_items, items.size(0), width, items),
          make(gpu::Gradient::values, need_values, items.size(0), c, users)};
}

at::Tensor catalogue_share(const at::Tensor& users, const at::Tensor& items,
                           const at::Tensor& weights, double scale,
                           const OptionalTensor& seen_offsets, const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_share";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, scale, seen_offsets, seen_items, device);
  check_tensor(op, "weights", weights, {users.size(0), -1}, result_type(items), "items", items);
  const at::Tensor nothing = at::empty({items.size(0), 0}, users.options());
  const at::Tensor lse = std::get<1>(catalogue_mean_and_lse(op, view, users, nothing, device));
  const at::Tensor dense = weights.contiguous();
  const gpu::Cotangents from{nullptr, dense.const_data_ptr(), weights.size(1),
                             nullptr, lse.const_data_ptr(),   nullptr};
  return catalogue_gradient(op, view, from, gpu::Gradient::values, true, items.size(0),
                            weights.size(1), users, users, device);
}

std::tuple<at::Tensor, at::Tensor> catalogue_top(const at::Tensor& users, const at::Tensor& items,
                                                 int64_t k, const OptionalTensor& seen_offsets,
                                                 const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_top";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, 1.0, seen_offsets, seen_items, device);
  check_top(op, k, items);
  const int64_t n = users.size(0), lists = gpu::top_lists(*view, k);
  at::Tensor scores = at::empty({lists, n, k}, users.options());
  at::Tensor top = at::empty({lists, n, k}, users.options().dtype(at::kLong));
  if (scores.numel() > 0) {
    check_launch(op, gpu::catalogue_top(*view, k, scores.mutable_data_ptr(),
                                        top.mutable_data_ptr<int64_t>(), device.stream()));
  }
  if (lists == 1 || scores.numel() == 0) return {scores[0], top[0]};
  // Chunks lie in the items' order and the sort is stable: of equal scores the lower item is first.
  const auto [sorted, order] = at::sort(scores.transpose(0, 1).reshape({n, lists * k}),
                                        /*stable=*/true, /*dim=*/1, /*descending=*/true);
  return {sorted.narrow(1, 0, k).contiguous(),
          top.transpose(0, 1).reshape({n, lists * k}).gather(1, order.narrow(1, 0, k))};
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl("catalogue_mean", &catalogue_mean);
  m.impl("catalogue_share", &catalogue_share);
  m.impl("catalogue_top", &catalogue_top);
}

FUDLR_GPU_LIBRARY(fudlr_grad, m) { m.impl("catalogue_mean_backward", &catalogue_mean_backward); }

}  // namespace fudlr
