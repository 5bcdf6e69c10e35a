// catalogue_mean, its backward, catalogue_share and catalogue_top on the CPU: tensors, threads,
// registration.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "abi/library.h"
#include "checks.h"
#include "cpu/catalogue_view.h"

namespace fudlr {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What the gradients depend on: g [n, c], shift [n] and lse [n], dense.
struct CatalogueCotangents {
  Tensor weights, shift, lse;
};

struct CatalogueWanted {
  bool users, items, values;
};

// Joins a user's sums over some items, relative to the largest score `from[0]`, with those of
// others.
void join_state(const double* from, int64_t size, double* to) {
  // NaN is never the larger, and must come through.
  const double most = from[0] > to[0] ? from[0] : to[0];
  const double ours = to[0] == most ? 1 : std::exp(to[0] - most);
  const double theirs = from[0] == most ? 1 : std::exp(from[0] - most);
  for (int64_t j = 1; j < size; ++j) to[j] = to[j] * ours + from[j] * theirs;
  to[0] = most;
}

// Means and logarithms of some users.
void mean_and_lse(const CatalogueArguments& given, const OptionalTensor& values, int64_t c,
                  Tensor mean, Tensor lse) {
  const int64_t n = given.users.size(0);
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const CatalogueView<decltype(in), Real> view(kernels, given, values, c);
    const int64_t size = 2 + c;
    const int64_t at_once = catalogue_slots();
    std::vector<double> partial(at_once * n * size);
    std::vector<double> total(n * size, 0);
    for (int64_t i = 0; i < n; ++i) total[i * size] = -kInfinity;
    for_chunks(
        view, at_once,
        [&](int64_t begin, int64_t end, int64_t slot) {
          kernels.forward(*view, begin, end, partial.data() + slot * n * size);
        },
        [&](int64_t slot) {
          for (int64_t i = 0; i < n; ++i) {
            join_state(partial.data() + (slot * n + i) * size, size, total.data() + i * size);
          }
        });
    Real* mean_data = mean.mutable_data_ptr<Real>();
    Real* lse_data = lse.mutable_data_ptr<Real>();
    for (int64_t i = 0; i < n; ++i) {
      const double* state = total.data() + i * size;
      lse_data[i] = static_cast<Real>(state[0] + std::log(state[1]));
      for (int64_t j = 0; j < c; ++j) {
        mean_data[i * c + j] = static_cast<Real>(state[2 + j] / state[1]);
      }
    }
  };
  dispatch(given.items.scalar_type(), FUDLR_TABLE(catalogue), run);
}

// The gradients of some users; in items and values their part, where those are given.
void gradients(const CatalogueArguments& given, const OptionalTensor& values,
               const CatalogueCotangents& from, const OptionalTensor& to_users,
               const OptionalTensor& to_items, const OptionalTensor& to_values) {
  const int64_t n = given.users.size(0);
  const int64_t width = given.items.size(1);
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using In = decltype(in);
    using Real = decltype(real);
    const CatalogueView<In, Real> view(kernels, given, values, from.weights.size(1));
    const int64_t padded = (*view).padded;
    const int64_t at_once = catalogue_slots();
    const Tensor partials = empty({to_users ? at_once : 0, n, padded}, given.users);
    const Tensor packed = empty({to_items ? n : 0, padded}, given.users);
    if (to_items) kernels.pack_users(*view, packed.mutable_data_ptr<Real>());
    Real* partial = partials.mutable_data_ptr<Real>();
    std::vector<double> total(to_users ? n * width : 0, 0);
    const CatalogueGradients<In, Real> to{
        from.weights.const_data_ptr<Real>(),
        from.shift.const_data_ptr<Real>(),
        from.lse.const_data_ptr<Real>(),
        packed.const_data_ptr<Real>(),
        nullptr,
        to_items ? static_cast<In*>(to_items->mutable_data_ptr()) : nullptr,
        to_values ? to_values->mutable_data_ptr<Real>() : nullptr};
    for_chunks(
        view, at_once,
        [&](int64_t begin, int64_t end, int64_t slot) {
          CatalogueGradients<In, Real> mine = to;
          if (to_users) mine.users = partial + slot * n * padded;
          kernels.backward(*view, mine, begin, end);
        },
        [&](int64_t slot) {
          for (int64_t i = 0; to_users && i < n; ++i) {
            const Real* row = partial + (slot * n + i) * padded;
            for (int64_t j = 0; j < width; ++j) total[i * width + j] += row[j];
          }
        });
    Real* rows = to_users ? to_users->mutable_data_ptr<Real>() : nullptr;
    for (size_t i = 0; i < total.size(); ++i) rows[i] = static_cast<Real>(given.scale * total[i]);
  };
  dispatch(given.items.scalar_type(), FUDLR_TABLE(catalogue), run);
}

// p C [n, c] for values C [M, c], or for none with c = 0, and log Σ exp of the scores [n].
TwoTensors catalogue_mean_and_lse(const CatalogueArguments& given, const OptionalTensor& values,
                                  int64_t c) {
  const int64_t n = given.users.size(0);
  Tensor mean = empty({n, c}, given.users);
  Tensor lse = empty({n}, given.users);
  for_users(given, 2 * (2 + c), [&](const CatalogueArguments& part, int64_t first, int64_t count) {
    mean_and_lse(part, values, c, mean.narrow(0, first, count), lse.narrow(0, first, count));
  });
  return {mean, lse};
}

// In users, items and values for ∂ℓ/∂s_im = p_im (g_i · C_m − shift_i); empty where not wanted.
ThreeTensors catalogue_gradients(const CatalogueArguments& given, const OptionalTensor& values,
                                 const CatalogueCotangents& from, CatalogueWanted wanted) {
  const int64_t n = given.users.size(0), m = given.items.size(0), width = given.items.size(1);
  const int64_t c = from.weights.size(1);
  const auto made = [](bool needed, int64_t rows, int64_t columns, const Tensor& like) {
    return empty({needed ? rows : 0, needed ? columns : 0}, like);
  };
  Tensor to_users = made(wanted.users, n, width, given.users);
  Tensor to_items = made(wanted.items, m, width, given.items);
  Tensor to_values = made(wanted.values, m, c, given.users);
  OptionalTensor items = wanted.items ? OptionalTensor(to_items) : std::nullopt;
  OptionalTensor columns = wanted.values ? OptionalTensor(to_values) : std::nullopt;
  if (!wanted.users) {
    gradients(given, values, from, std::nullopt, items, columns);
    return {to_users, to_items, to_values};
  }
  for_users(given, width, [&](const CatalogueArguments& part, int64_t first, int64_t count) {
    if (count < n && first == 0 && (items || columns)) {
      // Sums over all users at once, which is a pass of its own: the scores are formed again.
      gradients(given, values, from, std::nullopt, items, columns);
      items = columns = std::nullopt;
    }
    const CatalogueCotangents theirs{from.weights.narrow(0, first, count),
                                     from.shift.narrow(0, first, count),
                                     from.lse.narrow(0, first, count)};
    gradients(part, values, theirs, to_users.narrow(0, first, count), items, columns);
  });
  return {to_users, to_items, to_values};
}

TwoTensors catalogue_mean(const Tensor& users, const Tensor& items, const Tensor& values,
                          double scale, const OptionalTensor& seen_offsets,
                          const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_mean";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, scale};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  check_tensor(op, "values", values, {items.size(0), -1}, result_type(items), "items", items);
  return catalogue_mean_and_lse(given, values, values.size(1));
}

ThreeTensors catalogue_mean_backward(const Tensor& users, const Tensor& items, const Tensor& values,
                                     double scale, const OptionalTensor& seen_offsets,
                                     const OptionalTensor& seen_items, const Tensor& lse,
                                     const Tensor& weights, const Tensor& shift, bool need_users,
                                     bool need_items, bool need_values) {
  constexpr const char* op = "catalogue_mean_backward";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, scale};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  const int64_t n = users.size(0);
  const int64_t c = values.size(1);
  const Dtype real = result_type(items);
  check_tensor(op, "values", values, {items.size(0), -1}, real, "items", items);
  check_tensor(op, "lse", lse, {n}, real, "items", items);
  check_tensor(op, "weights", weights, {n, c}, real, "items", items);
  check_tensor(op, "shift", shift, {n}, real, "items", items);
  const CatalogueCotangents from{weights.contiguous(), shift.contiguous(), lse.contiguous()};
  return catalogue_gradients(given, values, from, {need_users, need_items, need_values});
}

Tensor catalogue_share(const Tensor& users, const Tensor& items, const Tensor& weights,
                       double scale, const OptionalTensor& seen_offsets,
                       const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_share";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, scale};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  check_tensor(op, "weights", weights, {users.size(0), -1}, result_type(items), "items", items);
  const Tensor lse = std::get<1>(catalogue_mean_and_lse(given, std::nullopt, 0));
  const CatalogueCotangents from{weights.contiguous(), zeros({lse.size(0)}, lse), lse};
  return std::get<2>(catalogue_gradients(given, std::nullopt, from, {false, false, true}));
}

// Merges a falling list of k scores and their items with one of `length`; the first has the lower
// items, and goes first where scores are equal.
template <typename Real>
void merge(Real* scores, int64_t* items, const Real* more, const int64_t* more_items,
           int64_t length, std::vector<Real>& merged, std::vector<int64_t>& merged_items) {
  int64_t x = 0, y = 0;
  for (size_t j = 0; j < merged.size(); ++j) {
    const bool ours = y == length || scores[x] >= more[y];
    merged[j] = ours ? scores[x] : more[y];
    merged_items[j] = ours ? items[x] : more_items[y];
    ours ? ++x : ++y;
  }
  std::copy(merged.begin(), merged.end(), scores);
  std::copy(merged_items.begin(), merged_items.end(), items);
}

// Lists of some users into scores and found_items [n, k].
void top_of_some(const CatalogueArguments& given, int64_t k, Tensor scores, Tensor found_items) {
  const int64_t n = given.users.size(0);
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const CatalogueView<decltype(in), Real> view(kernels, given, std::nullopt, 0);
    const int64_t at_once = catalogue_slots();
    std::vector<Real> partial(at_once * n * k), merged(k);
    std::vector<int64_t> found(at_once * n * k), merged_items(k), lengths(at_once);
    Real* best = scores.mutable_data_ptr<Real>();
    int64_t* best_items = found_items.mutable_data_ptr<int64_t>();
    std::fill_n(best, n * k, static_cast<Real>(-kInfinity));
    std::fill_n(best_items, n * k, -1);
    for_chunks(
        view, at_once,
        [&](int64_t begin, int64_t end, int64_t slot) {
          const int64_t at = slot * n * k;
          lengths[slot] = std::min(k, end - begin);  // a chunk has no more
          kernels.top(*view, lengths[slot], begin, end, partial.data() + at, found.data() + at);
        },
        [&](int64_t slot) {
          for (int64_t i = 0; i < n; ++i) {
            const int64_t at = slot * n * k + i * lengths[slot];
            merge(best + i * k, best_items + i * k, partial.data() + at, found.data() + at,
                  lengths[slot], merged, merged_items);
          }
        });
  };
  dispatch(given.items.scalar_type(), FUDLR_TABLE(catalogue), run);
}

TwoTensors catalogue_top(const Tensor& users, const Tensor& items, int64_t k,
                         const OptionalTensor& seen_offsets, const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_top";
  const CatalogueArguments given{users, items, seen_offsets, seen_items, 1.0};
  check_catalogue(op, users, items, seen_offsets, seen_items);
  check_top(op, k, items);
  const int64_t n = users.size(0);
  Tensor scores = empty({n, k}, users), found_items = empty({n, k}, users, kLong);
  if (k == 0) return {scores, found_items};
  for_users(given, 2 * k, [&](const CatalogueArguments& part, int64_t first, int64_t count) {
    top_of_some(part, k, scores.narrow(0, first, count), found_items.narrow(0, first, count));
  });
  return {scores, found_items};
}

}  // namespace

FUDLR_LIBRARY_IMPL(fudlr, CPU, m) {
  m.impl<&catalogue_mean>("catalogue_mean");
  m.impl<&catalogue_share>("catalogue_share");
  m.impl<&catalogue_top>("catalogue_top");
}

FUDLR_LIBRARY_IMPL(fudlr_grad, CPU, m) {
  m.impl<&catalogue_mean_backward>("catalogue_mean_backward");
}

}  // namespace fudlr
