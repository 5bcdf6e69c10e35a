// The two passes over a catalogue that its ops, and a head's cross-entropy, are made of on a GPU:
// means under the softmax, and gradients; tensors and scratch memory.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>

#include "cuda/catalogue.h"
#include "cuda/device.h"

namespace fudlr {

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

  // Where the number in `bad` [1] is not zero, every result is NaN.
  void set_bad(const at::Tensor& bad) {
    bad_ = bad;
    view_.bad = bad_.const_data_ptr<int>();
  }

 private:
  // The keys i · M + m, sorted, which leaves each user's in their place.
  void set_seen(const char* op, const at::Tensor& offsets, const at::Tensor& items,
                const OnDevice& device) {
    offsets_ = offsets.contiguous();
    const at::Tensor listed = items.contiguous();
    set_bad(at::empty({1}, offsets_.options().dtype(at::kInt)));
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
inline std::tuple<at::Tensor, at::Tensor> catalogue_mean_and_lse(const char* op,
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
inline at::Tensor catalogue_gradient(const char* op, const CatalogueOnDevice& view,
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

}  // namespace fudlr
