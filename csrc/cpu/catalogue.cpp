// catalogue_mean, its backward, catalogue_share and catalogue_top on the CPU: tensors, threads,
// registration.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/catalogue_passes.h"

namespace fudlr {
namespace {

std::tuple<at::Tensor, at::Tensor> catalogue_mean(const at::Tensor& users, const at::Tensor& items,
                                                  const at::Tensor& values, double scale,
                                                  const OptionalTensor& seen_offsets,
                                                  const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_mean";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, scale};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  check_tensor(op, "values", values, {items.size(0), -1}, result_type(items), "items", items);
  return catalogue_mean_and_lse(given, values, values.size(1));
}

CatalogueTensors catalogue_mean_backward(const at::Tensor& users, const at::Tensor& items,
                                         const at::Tensor& values, double scale,
                                         const OptionalTensor& seen_offsets,
                                         const OptionalTensor& seen_items, const at::Tensor& mean,
                                         const at::Tensor& lse, const at::Tensor& grad_mean,
                                         const at::Tensor& grad_lse, bool need_users,
                                         bool need_items, bool need_values) {
  constexpr const char* op = "catalogue_mean_backward";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, scale};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const int64_t n = users.size(0);
  const int64_t c = values.size(1);
  const at::ScalarType real = result_type(items);
  check_tensor(op, "values", values, {items.size(0), -1}, real, "items", items);
  check_tensor(op, "mean", mean, {n, c}, real, "items", items);
  check_tensor(op, "lse", lse, {n}, real, "items", items);
  check_tensor(op, "grad_mean", grad_mean, {n, c}, real, "items", items);
  check_tensor(op, "grad_lse", grad_lse, {n}, real, "items", items);
  const CatalogueCotangents from{grad_mean.contiguous(), grad_mean.mul(mean).sum(1).sub_(grad_lse),
                                 lse.contiguous()};
  return catalogue_gradients(given, values, from, {need_users, need_items, need_values});
}

at::Tensor catalogue_share(const at::Tensor& users, const at::Tensor& items,
                           const at::Tensor& weights, double scale,
                           const OptionalTensor& seen_offsets, const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_share";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, scale};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  check_tensor(op, "weights", weights, {users.size(0), -1}, result_type(items), "items", items);
  const at::Tensor lse = std::get<1>(catalogue_mean_and_lse(given, std::nullopt, 0));
  const CatalogueCotangents from{weights.contiguous(), at::zeros_like(lse), lse};
  return std::get<2>(catalogue_gradients(given, std::nullopt, from, {false, false, true}));
}

// Merges two falling lists of k scores and their items; the first has the lower items, and goes
// first where scores are equal.
template <typename Real>
void merge(Real* scores, int64_t* items, const Real* more, const int64_t* more_items,
           std::vector<Real>& merged, std::vector<int64_t>& merged_items) {
  size_t x = 0, y = 0;
  for (size_t j = 0; j < merged.size(); ++j) {
    const bool ours = scores[x] >= more[y];
    merged[j] = ours ? scores[x] : more[y];
    merged_items[j] = ours ? items[x] : more_items[y];
    ours ? ++x : ++y;
  }
  std::copy(merged.begin(), merged.end(), scores);
  std::copy(merged_items.begin(), merged_items.end(), items);
}

// Lists of some users into scores and found_items [n, k], which hold none yet.
void top_of_some(const CatalogueArguments& given, int64_t k, at::Tensor scores,
                 at::Tensor found_items) {
  const int64_t n = given.users.size(0);
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const CatalogueView<decltype(in), Real> view(kernels, given, std::nullopt, 0);
    const int64_t at_once = catalogue_slots();
    std::vector<Real> partial(at_once * n * k), merged(k);
    std::vector<int64_t> found(at_once * n * k), merged_items(k);
    Real* best = scores.mutable_data_ptr<Real>();
    int64_t* best_items = found_items.mutable_data_ptr<int64_t>();
    for_chunks(
        view, at_once,
        [&](int64_t begin, int64_t end, int64_t slot) {
          const int64_t at = slot * n * k;
          kernels.top(*view, k, begin, end, partial.data() + at, found.data() + at);
        },
        [&](int64_t slot) {
          for (int64_t i = 0; i < n; ++i) {
            const int64_t at = (slot * n + i) * k;
            merge(best + i * k, best_items + i * k, partial.data() + at, found.data() + at, merged,
                  merged_items);
          }
        });
  };
  dispatch(given.items.scalar_type(), FUDLR_TABLE(catalogue), run);
}

std::tuple<at::Tensor, at::Tensor> catalogue_top(const at::Tensor& users, const at::Tensor& items,
                                                 int64_t k, const OptionalTensor& seen_offsets,
                                                 const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_top";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, 1.0};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  check_top(op, k, items);
  const int64_t n = users.size(0);
  at::Tensor scores = at::full({n, k}, -kInfinity, users.options());
  at::Tensor found_items = at::full({n, k}, -1, users.options().dtype(at::kLong));
  if (k == 0) return {scores, found_items};
  for_users(given, 2 * k, [&](const CatalogueArguments& part, int64_t first, int64_t count) {
    top_of_some(part, k, scores.narrow(0, first, count), found_items.narrow(0, first, count));
  });
  return {scores, found_items};
}

}  // namespace

TORCH_LIBRARY_IMPL(fudlr, CPU, m) {
  m.impl("catalogue_mean", &catalogue_mean);
  m.impl("catalogue_share", &catalogue_share);
  m.impl("catalogue_top", &catalogue_top);
}

TORCH_LIBRARY_IMPL(fudlr_grad, CPU, m) {
  m.impl("catalogue_mean_backward", &catalogue_mean_backward);
}

}  // namespace fudlr
