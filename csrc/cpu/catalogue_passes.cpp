#include "cpu/catalogue_passes.h"

#include <ATen/ops/empty.h>

#include <cmath>

namespace fudlr {
namespace {

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
                  at::Tensor mean, at::Tensor lse) {
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
    const at::Tensor partials =
        at::empty({to_users ? at_once : 0, n, padded}, given.users.options());
    const at::Tensor packed = at::empty({to_items ? n : 0, padded}, given.users.options());
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

}  // namespace

std::tuple<at::Tensor, at::Tensor> catalogue_mean_and_lse(const CatalogueArguments& given,
                                                          const OptionalTensor& values, int64_t c) {
  const int64_t n = given.users.size(0);
  at::Tensor mean = at::empty({n, c}, given.users.options());
  at::Tensor lse = at::empty({n}, given.users.options());
  for_users(given, 2 * (2 + c), [&](const CatalogueArguments& part, int64_t first, int64_t count) {
    mean_and_lse(part, values, c, mean.narrow(0, first, count), lse.narrow(0, first, count));
  });
  return {mean, lse};
}

CatalogueTensors catalogue_gradients(const CatalogueArguments& given, const OptionalTensor& values,
                                     const CatalogueCotangents& from, CatalogueWanted wanted) {
  const int64_t n = given.users.size(0), m = given.items.size(0), width = given.items.size(1);
  const int64_t c = from.weights.size(1);
  const auto empty = [](bool needed, int64_t rows, int64_t columns, const at::Tensor& like) {
    return at::empty({needed ? rows : 0, needed ? columns : 0}, like.options());
  };
  at::Tensor to_users = empty(wanted.users, n, width, given.users);
  at::Tensor to_items = empty(wanted.items, m, width, given.items);
  at::Tensor to_values = empty(wanted.values, m, c, given.users);
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

}  // namespace fudlr
