// catalogue_mean, its backward, catalogue_share and catalogue_top on a GPU: tensors, scratch memory
// and registration.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cuda/catalogue.h"
#include "cuda/device.h"

namespace fudlr {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The catalogue as the launchers take it, and what has to stay alive for that.
class CatalogueOnDevice {
 public:
  CatalogueOnDevice(const char* op, const at::Tensor& users, const at::Tensor& items, double scale,
                    const OptionalTensor& seen_offsets, const OptionalTensor& seen_items,
                    const OnDevice& device)
      : users_(with_dense_rows(users)), items_(with_dense_rows(items)) {
    view_ = {number_of(items_),
             users_.const_data_ptr(),
             users_.stride(0),
             users_.size(0),
             items_.const_data_ptr(),
             items_.stride(0),
             items_.size(0),
             items_.size(1),
             scale,
             nullptr,
             nullptr,
             nullptr};
    if (seen_offsets) set_seen(op, *seen_offsets, *seen_items, device);
  }

  const gpu::Catalogue& operator*() const { return view_; }

 private:
  // The keys i · M + m, sorted, which leaves each user's in their place.
  void set_seen(const char* op, const at::Tensor& offsets, const at::Tensor& items,
                const OnDevice& device) {
    offsets_ = offsets.contiguous();
    const at::Tensor listed = items.contiguous();
    bad_ = at::empty({1}, offsets_.options().dtype(at::kInt));
    view_.bad = bad_.const_data_ptr<int>();
    check_launch(op, gpu::check_seen(offsets_.const_data_ptr<int64_t>(), view_.n,
                                     listed.const_data_ptr<int64_t>(), listed.numel(), view_.m,
                                     bad_.mutable_data_ptr<int>(), device.stream()));
    const at::Tensor places = at::arange(listed.numel(), offsets_.options());
    const at::Tensor user = at::searchsorted(offsets_, places, false, true).sub_(1);
    keys_ = std::get<0>(at::sort(user.mul_(view_.m).add_(listed)));
    view_.seen_offsets = offsets_.const_data_ptr<int64_t>();
    view_.seen = keys_.const_data_ptr<int64_t>();
  }

  at::Tensor users_, items_, offsets_, keys_, bad_;
  gpu::Catalogue view_;
};

// p C [n, c] for values C [M, c], and log Σ exp of the scores [n].
std::tuple<at::Tensor, at::Tensor> catalogue_mean_and_lse(const char* op,
                                                          const CatalogueOnDevice& view,
                                                          const at::Tensor& users,
                                                          const at::Tensor& values,
                                                          const OnDevice& device) {
  const int64_t n = users.size(0);
  const int64_t c = values.size(1);
  at::Tensor mean = at::empty({n, c}, users.options());
  at::Tensor lse = at::empty({n}, users.options());
  if (n == 0) return {mean, lse};
  const at::Tensor dense = values.contiguous();
  const at::Tensor states = scratch(gpu::mean_states(*view) * 2, users);
  const at::Tensor sums = scratch(gpu::mean_states(*view) * c, users);
  check_launch(op, gpu::catalogue_mean(*view, dense.const_data_ptr(), c, states.mutable_data_ptr(),
                                       sums.mutable_data_ptr(), mean.mutable_data_ptr(),
                                       lse.mutable_data_ptr(), device.stream()));
  return {mean, lse};
}

// One of the gradients, [rows, columns] like `like`; empty where it is not needed.
at::Tensor catalogue_gradient(const char* op, const CatalogueOnDevice& view,
                              const gpu::Cotangents& from, gpu::Gradient of, bool needed,
                              int64_t rows, int64_t columns, const at::Tensor& like,
                              const at::Tensor& users, const OnDevice& device) {
  if (!needed) return at::empty({0, 0}, like.options());
  if (rows * columns == 0 || (*view).n == 0) return at::zeros({rows, columns}, like.options());
  at::Tensor to = at::empty({rows, columns}, like.options());
  const at::Tensor work = scratch(gpu::gradient_work(*view, from.c, of), users);
  check_launch(op, gpu::catalogue_gradient(*view, from, of, work.mutable_data_ptr(),
                                           to.mutable_data_ptr(), device.stream()));
  return to;
}

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
                             shift.const_data_ptr(), sums.const_data_ptr()};
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
  const gpu::Cotangents from{nullptr, dense.const_data_ptr(), weights.size(1), nullptr,
                             lse.const_data_ptr()};
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
