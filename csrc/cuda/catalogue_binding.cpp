// catalogue_mean, its backward, catalogue_share and catalogue_top on a GPU: tensors, scratch memory
// and registration.
#include "checks.h"
#include "cuda/catalogue.h"
#include "cuda/device.h"

namespace fudlr {
namespace {

// torch's ops, through its dispatcher: sorted along a dimension, stable, and whence each came.
TwoTensors sorted(const Tensor& numbers, int64_t dim, bool descending) {
  StableIValue stack[]{abi::given(numbers), abi::given_optional(true), abi::given(dim),
                       abi::given(descending)};
  require(torch_call_dispatcher("aten::sort", "stable", stack, abi::kVersion), "aten::sort");
  return {abi::taken<Tensor>(stack[0]), abi::taken<Tensor>(stack[1])};
}

// The numbers of each row that `index` names.
Tensor gathered(const Tensor& numbers, const Tensor& index) {
  StableIValue stack[]{abi::given(numbers), abi::given(int64_t{1}), abi::given(index),
                       abi::given(false)};
  require(torch_call_dispatcher("aten::gather", "", stack, abi::kVersion), "aten::gather");
  return abi::taken<Tensor>(stack[0]);
}

// The catalogue as the launchers take it, and what has to stay alive for that.
class CatalogueOnDevice {
 public:
  CatalogueOnDevice(const char* op, const Tensor& users, const Tensor& items, double scale,
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
  void set_seen(const char* op, const Tensor& offsets, const Tensor& items,
                const OnDevice& device) {
    offsets_ = offsets.contiguous();
    const Tensor listed = items.contiguous();
    bad_ = empty({1}, offsets_, kInt);
    view_.bad = bad_.const_data_ptr<int>();
    const Tensor keys = empty({listed.numel()}, listed);
    check_launch(op, gpu::check_seen(offsets_.const_data_ptr<int64_t>(), view_.n,
                                     listed.const_data_ptr<int64_t>(), listed.numel(), view_.m,
                                     bad_.mutable_data_ptr<int>(), keys.mutable_data_ptr<int64_t>(),
                                     device.stream()));
    keys_ = std::get<0>(sorted(keys, 0, false));
    view_.seen_offsets = offsets_.const_data_ptr<int64_t>();
    view_.seen = keys_.const_data_ptr<int64_t>();
  }

  Tensor users_, items_, offsets_, keys_, bad_;
  gpu::Catalogue view_;
};

// p C [n, c] for values C [M, c], and log Σ exp of the scores [n].
TwoTensors catalogue_mean_and_lse(const char* op, const CatalogueOnDevice& view,
                                  const Tensor& users, const Tensor& values,
                                  const OnDevice& device) {
  const int64_t n = users.size(0);
  const int64_t c = values.size(1);
  Tensor mean = empty({n, c}, users);
  Tensor lse = empty({n}, users);
  if (n == 0) return {mean, lse};
  const Tensor dense = values.contiguous();
  const Tensor states = scratch(gpu::mean_states(*view) * 2, users);
  const Tensor sums = scratch(gpu::mean_states(*view) * c, users);
  check_launch(op, gpu::catalogue_mean(*view, dense.const_data_ptr(), c, states.mutable_data_ptr(),
                                       sums.mutable_data_ptr(), mean.mutable_data_ptr(),
                                       lse.mutable_data_ptr(), device.stream()));
  return {mean, lse};
}

// One of the gradients, [rows, columns] like `like`; empty where it is not needed.
Tensor catalogue_gradient(const char* op, const CatalogueOnDevice& view,
                          const gpu::Cotangents& from, gpu::Gradient of, bool needed, int64_t rows,
                          int64_t columns, const Tensor& like, const Tensor& users,
                          const OnDevice& device) {
  if (!needed) return empty({0, 0}, like);
  if (rows * columns == 0 || (*view).n == 0) return zeros({rows, columns}, like);
  Tensor to = empty({rows, columns}, like);
  const Tensor work = scratch(gpu::gradient_work(*view, from.c, of), users);
  check_launch(op, gpu::catalogue_gradient(*view, from, of, work.mutable_data_ptr(),
                                           to.mutable_data_ptr(), device.stream()));
  return to;
}

TwoTensors catalogue_mean(const Tensor& users, const Tensor& items, const Tensor& values,
                          double scale, const OptionalTensor& seen_offsets,
                          const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_mean";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, scale, seen_offsets, seen_items, device);
  check_tensor(op, "values", values, {items.size(0), -1}, result_type(items), "items", items);
  return catalogue_mean_and_lse(op, view, users, values, device);
}

ThreeTensors catalogue_mean_backward(const Tensor& users, const Tensor& items, const Tensor& values,
                                     double scale, const OptionalTensor& seen_offsets,
                                     const OptionalTensor& seen_items, const Tensor& lse,
                                     const Tensor& weights, const Tensor& shift, bool need_users,
                                     bool need_items, bool need_values) {
  constexpr const char* op = "catalogue_mean_backward";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, scale, seen_offsets, seen_items, device);
  const int64_t n = users.size(0), c = values.size(1), width = items.size(1);
  const Dtype real = result_type(items);
  check_tensor(op, "values", values, {items.size(0), -1}, real, "items", items);
  check_tensor(op, "lse", lse, {n}, real, "items", items);
  check_tensor(op, "weights", weights, {n, c}, real, "items", items);
  check_tensor(op, "shift", shift, {n}, real, "items", items);
  const Tensor columns = values.contiguous(), dense = weights.contiguous();
  const Tensor shifts = shift.contiguous(), sums = lse.contiguous();
  const gpu::Cotangents from{columns.const_data_ptr(), dense.const_data_ptr(), c,
                             shifts.const_data_ptr(), sums.const_data_ptr()};
  const auto make = [&](gpu::Gradient of, bool needed, int64_t rows, int64_t columns,
                        const Tensor& like) {
    return catalogue_gradient(op, view, from, of, needed, rows, columns, like, users, device);
  };
  return {make(gpu::Gradient::users, need_users, n, width, users),
          make(gpu::Gradient::items, need_items, items.size(0), width, items),
          make(gpu::Gradient::values, need_values, items.size(0), c, users)};
}

Tensor catalogue_share(const Tensor& users, const Tensor& items, const Tensor& weights,
                       double scale, const OptionalTensor& seen_offsets,
                       const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_share";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, scale, seen_offsets, seen_items, device);
  check_tensor(op, "weights", weights, {users.size(0), -1}, result_type(items), "items", items);
  const Tensor nothing = empty({items.size(0), 0}, users);
  const Tensor lse = std::get<1>(catalogue_mean_and_lse(op, view, users, nothing, device));
  const Tensor dense = weights.contiguous();
  const gpu::Cotangents from{nullptr, dense.const_data_ptr(), weights.size(1), nullptr,
                             lse.const_data_ptr()};
  return catalogue_gradient(op, view, from, gpu::Gradient::values, true, items.size(0),
                            weights.size(1), users, users, device);
}

TwoTensors catalogue_top(const Tensor& users, const Tensor& items, int64_t k,
                         const OptionalTensor& seen_offsets, const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_top";
  const OnDevice device(items);
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const CatalogueOnDevice view(op, users, items, 1.0, seen_offsets, seen_items, device);
  check_top(op, k, items);
  const int64_t n = users.size(0), lists = gpu::top_lists(*view, k);
  Tensor scores = empty({lists, n, k}, users);
  Tensor top = empty({lists, n, k}, users, kLong);
  if (scores.numel() > 0) {
    check_launch(op, gpu::catalogue_top(*view, k, scores.mutable_data_ptr(),
                                        top.mutable_data_ptr<int64_t>(), device.stream()));
  }
  const auto flat = [&](const Tensor& all) {
    return all.transpose(0, 1).contiguous().viewed({n, lists * k}, {lists * k, 1});
  };
  if (lists == 1 || scores.numel() == 0) return {flat(scores), flat(top)};
  // Chunks lie in the items' order and the sort is stable: of equal scores the lower item is first.
  const auto [found, order] = sorted(flat(scores), 1, /*descending=*/true);
  return {found.narrow(1, 0, k).contiguous(), gathered(flat(top), order.narrow(1, 0, k))};
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl<&catalogue_mean>("catalogue_mean");
  m.impl<&catalogue_share>("catalogue_share");
  m.impl<&catalogue_top>("catalogue_top");
}

FUDLR_GPU_LIBRARY(fudlr_grad, m) { m.impl<&catalogue_mean_backward>("catalogue_mean_backward"); }

}  // namespace fudlr
