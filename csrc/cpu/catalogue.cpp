// catalogue_mean, its backward, catalogue_share and catalogue_top on the CPU: tensors, threads,
// registration.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/catalogue_kernel.h"
#include "cpu/choose.h"

namespace fudlr {
namespace {

// Results of so many chunks a thread wait to be joined, so that fast threads need not.
constexpr int64_t kChunksPerThread = 2;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

using OptionalTensor = std::optional<at::Tensor>;

struct Arguments {
  const at::Tensor& users;
  const at::Tensor& items;
  const OptionalTensor& seen_offsets;
  const OptionalTensor& seen_items;
  double scale;
};

void check_arguments(const char* op, const Arguments& given) {
  check_catalogue(op, given.users, given.items, given.seen_offsets, given.seen_items);
}

// The catalogue as the kernels want it, and what has to stay alive for that.
template <typename In, typename Real>
class View {
 public:
  View(const CatalogueKernels<In, Real>& kernels, const Arguments& given,
       const OptionalTensor& values, int64_t c)
      : items_(with_dense_rows(given.items)),
        values_(values ? values->contiguous() : at::Tensor()) {
    const int64_t n = given.users.size(0);
    const int64_t width = given.items.size(1);
    const int64_t padded = kernels.padded(width);
    users_ = at::zeros({n, padded}, given.users.options());
    users_.narrow(1, 0, width).copy_(given.users).mul_(given.scale);
    sort_seen(given, n);
    view_ = {users_.template const_data_ptr<Real>(),
             n,
             padded,
             static_cast<const In*>(items_.const_data_ptr()),
             items_.stride(0),
             width,
             values ? values_.template const_data_ptr<Real>() : nullptr,
             c,
             given.seen_offsets ? offsets_.const_data_ptr<int64_t>() : nullptr,
             seen_.data()};
  }

  const Catalogue<In, Real>& operator*() const { return view_; }
  int64_t count() const { return items_.size(0); }
  int64_t chunk_work() const { return view_.n * view_.width * kItemChunk; }

 private:
  void sort_seen(const Arguments& given, int64_t n) {
    if (!given.seen_offsets) return;
    offsets_ = given.seen_offsets->contiguous();
    const int64_t* offsets = offsets_.const_data_ptr<int64_t>();
    const at::Tensor seen = given.seen_items->contiguous();
    const int64_t* data = seen.const_data_ptr<int64_t>();
    seen_.assign(data, data + seen.numel());
    for (int64_t i = 0; i < n; ++i) {
      std::sort(seen_.begin() + offsets[i], seen_.begin() + offsets[i + 1]);
    }
  }

  at::Tensor items_, values_, users_, offsets_;
  std::vector<int64_t> seen_;
  Catalogue<In, Real> view_;
};

// How many chunks' results exist at one time.
int64_t slots() {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return threads == 1 ? 1 : threads * kChunksPerThread;
}

// Calls work(begin, end, slot) for the chunks of the items, shared between threads, and join(slot)
// for each of them in the items' order, so that no number depends on the threads.
template <typename AnyView, typename Work, typename Join>
void for_chunks(const AnyView& view, int64_t at_once, Work work, Join join) {
  const int64_t count = view.count();
  const int64_t chunks = (count + kItemChunk - 1) / kItemChunk;
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, view.chunk_work()));
  for (int64_t first = 0; first < chunks; first += at_once) {
    const int64_t wave = std::min(at_once, chunks - first);
    at::parallel_for(0, wave, grain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        const int64_t start = (first + slot) * kItemChunk;
        work(start, std::min(start + kItemChunk, count), slot);
      }
    });
    for (int64_t slot = 0; slot < wave; ++slot) join(slot);
  }
}

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

std::tuple<at::Tensor, at::Tensor> mean_and_lse(const Arguments& given,
                                                const OptionalTensor& values, int64_t c) {
  const int64_t n = given.users.size(0);
  at::Tensor mean = at::empty({n, c}, given.users.options());
  at::Tensor lse = at::empty({n}, given.users.options());
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const View<decltype(in), Real> view(kernels, given, values, c);
    const int64_t size = 2 + c;
    const int64_t at_once = slots();
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
  return {mean, lse};
}

// What the gradients hang on: g [n, c], shift [n] and lse [n], dense.
struct Cotangents {
  at::Tensor weights, shift, lse;
};

struct Wanted {
  bool users, items, values;
};

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Gradients gradients(const Arguments& given, const OptionalTensor& values, const Cotangents& from,
                    Wanted wanted) {
  const int64_t n = given.users.size(0);
  const int64_t width = given.items.size(1);
  const int64_t c = from.weights.size(1);
  const auto room = [](bool needed, int64_t rows, int64_t columns, const at::Tensor& like) {
    return at::empty({needed ? rows : 0, needed ? columns : 0}, like.options());
  };
  at::Tensor to_users = room(wanted.users, n, width, given.users);
  at::Tensor to_items = room(wanted.items, given.items.size(0), width, given.items);
  at::Tensor to_values = room(wanted.values, given.items.size(0), c, given.users);
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using In = decltype(in);
    using Real = decltype(real);
    const View<In, Real> view(kernels, given, values, c);
    const int64_t padded = (*view).padded;
    const int64_t at_once = slots();
    at::Tensor partials = at::empty({wanted.users ? at_once : 0, n, padded}, given.users.options());
    Real* partial = partials.mutable_data_ptr<Real>();
    std::vector<double> total(wanted.users ? n * width : 0, 0);
    CatalogueGradients<In, Real> to{
        from.weights.const_data_ptr<Real>(),
        from.shift.const_data_ptr<Real>(),
        from.lse.const_data_ptr<Real>(),
        nullptr,
        wanted.items ? static_cast<In*>(to_items.mutable_data_ptr()) : nullptr,
        wanted.values ? to_values.mutable_data_ptr<Real>() : nullptr};
    for_chunks(
        view, at_once,
        [&](int64_t begin, int64_t end, int64_t slot) {
          CatalogueGradients<In, Real> mine = to;
          if (wanted.users) mine.users = partial + slot * n * padded;
          kernels.backward(*view, mine, begin, end);
        },
        [&](int64_t slot) {
          for (int64_t i = 0; wanted.users && i < n; ++i) {
            const Real* row = partial + (slot * n + i) * padded;
            for (int64_t j = 0; j < width; ++j) total[i * width + j] += row[j];
          }
        });
    Real* rows = to_users.mutable_data_ptr<Real>();
    for (size_t i = 0; i < total.size(); ++i) rows[i] = static_cast<Real>(given.scale * total[i]);
  };
  dispatch(given.items.scalar_type(), FUDLR_TABLE(catalogue), run);
  return {to_users, to_items, to_values};
}

std::tuple<at::Tensor, at::Tensor> catalogue_mean(const at::Tensor& users, const at::Tensor& items,
                                                  const at::Tensor& values, double scale,
                                                  const OptionalTensor& seen_offsets,
                                                  const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_mean";
  const Arguments given{users, items, seen_offsets, seen_items, scale};
  check_arguments(op, given);
  check_tensor(op, "values", values, {items.size(0), -1}, result_type(items), "items", items);
  return mean_and_lse(given, values, values.size(1));
}

Gradients catalogue_mean_backward(const at::Tensor& users, const at::Tensor& items,
                                  const at::Tensor& values, double scale,
                                  const OptionalTensor& seen_offsets,
                                  const OptionalTensor& seen_items, const at::Tensor& mean,
                                  const at::Tensor& lse, const at::Tensor& grad_mean,
                                  const at::Tensor& grad_lse, bool need_users, bool need_items,
                                  bool need_values) {
  constexpr const char* op = "catalogue_mean_backward";
  const Arguments given{users, items, seen_offsets, seen_items, scale};
  check_arguments(op, given);
  const int64_t n = users.size(0);
  const int64_t c = values.size(1);
  const at::ScalarType real = result_type(items);
  check_tensor(op, "values", values, {items.size(0), -1}, real, "items", items);
  check_tensor(op, "mean", mean, {n, c}, real, "items", items);
  check_tensor(op, "lse", lse, {n}, real, "items", items);
  check_tensor(op, "grad_mean", grad_mean, {n, c}, real, "items", items);
  check_tensor(op, "grad_lse", grad_lse, {n}, real, "items", items);
  const Cotangents from{grad_mean.contiguous(), grad_mean.mul(mean).sum(1).sub_(grad_lse),
                        lse.contiguous()};
  return gradients(given, values, from, {need_users, need_items, need_values});
}

at::Tensor catalogue_share(const at::Tensor& users, const at::Tensor& items,
                           const at::Tensor& weights, double scale,
                           const OptionalTensor& seen_offsets, const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_share";
  const Arguments given{users, items, seen_offsets, seen_items, scale};
  check_arguments(op, given);
  check_tensor(op, "weights", weights, {users.size(0), -1}, result_type(items), "items", items);
  const at::Tensor lse = std::get<1>(mean_and_lse(given, std::nullopt, 0));
  const Cotangents from{weights.contiguous(), at::zeros_like(lse), lse};
  return std::get<2>(gradients(given, std::nullopt, from, {false, false, true}));
}

// Merges two falling lists of k scores and their items; the first has the lower items, and goes
// first where scores are equal.
template <typename Real>
void merge(Real* scores, int64_t* items, const Real* more, const int64_t* more_items,
           std::vector<Real>& room, std::vector<int64_t>& item_room) {
  size_t x = 0, y = 0;
  for (size_t j = 0; j < room.size(); ++j) {
    const bool ours = scores[x] >= more[y];
    room[j] = ours ? scores[x] : more[y];
    item_room[j] = ours ? items[x] : more_items[y];
    ours ? ++x : ++y;
  }
  std::copy(room.begin(), room.end(), scores);
  std::copy(item_room.begin(), item_room.end(), items);
}

std::tuple<at::Tensor, at::Tensor> catalogue_top(const at::Tensor& users, const at::Tensor& items,
                                                 int64_t k, const OptionalTensor& seen_offsets,
                                                 const OptionalTensor& seen_items) {
  constexpr const char* op = "catalogue_top";
  const Arguments given{users, items, seen_offsets, seen_items, 1.0};
  check_arguments(op, given);
  check_top(op, k, items);
  const int64_t n = users.size(0);
  at::Tensor scores = at::full({n, k}, -kInfinity, users.options());
  at::Tensor places = at::full({n, k}, -1, users.options().dtype(at::kLong));
  if (k == 0) return {scores, places};
  const auto run = [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const View<decltype(in), Real> view(kernels, given, std::nullopt, 0);
    const int64_t at_once = slots();
    std::vector<Real> partial(at_once * n * k), room(k);
    std::vector<int64_t> found(at_once * n * k), item_room(k);
    Real* best = scores.mutable_data_ptr<Real>();
    int64_t* best_places = places.mutable_data_ptr<int64_t>();
    for_chunks(
        view, at_once,
        [&](int64_t begin, int64_t end, int64_t slot) {
          const int64_t at = slot * n * k;
          kernels.top(*view, k, begin, end, partial.data() + at, found.data() + at);
        },
        [&](int64_t slot) {
          for (int64_t i = 0; i < n; ++i) {
            const int64_t at = (slot * n + i) * k;
            merge(best + i * k, best_places + i * k, partial.data() + at, found.data() + at, room,
                  item_room);
          }
        });
  };
  dispatch(items.scalar_type(), FUDLR_TABLE(catalogue), run);
  return {scores, places};
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
