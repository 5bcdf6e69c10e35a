// The ops of an unrolled training on the CPU: tensors, threads and registration.

#include <algorithm>
#include <vector>

#include "abi/library.h"
#include "abi/parallel.h"
#include "checks.h"
#include "cpu/choose.h"
#include "cpu/unroll_kernel.h"

namespace fudlr {
namespace {

// Checks that `given` is [d], or lines [k, d], like `like`; returns it without gaps.
Tensor lines(const char* op, const char* name, const Tensor& given, int64_t k, int64_t d,
             const Tensor& like) {
  if (k < 0) {
    check_tensor(op, name, given, {d}, like.scalar_type(), "theta", like);
  } else {
    check_tensor(op, name, given, {k, d}, like.scalar_type(), "theta", like);
  }
  return given.contiguous();
}

AdamOptions options_of(const char* op, const Tensor& given) {
  check_tensor(op, "options", given, {10}, kDouble, "options", given);
  const Tensor dense = given.contiguous();
  const double* o = dense.const_data_ptr<double>();
  return {o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], o[9]};
}

template <typename Run>
void dispatch_real(const Tensor& like, Run run) {
  const UnrollTable& table = FUDLR_TABLE(unroll);
  if (like.scalar_type() == kDouble) return run(table.f64, double{});
  FUDLR_CHECK_VALUE(like.scalar_type() == kFloat, "fudlr_unroll has no CPU kernel for ",
                    like.scalar_type());
  run(table.f32, float{});
}

// Theta, start and gradient [d], and a mean and square beside them, without gaps.
class Place {
 public:
  Place(const char* op, const Tensor& theta, const Tensor& mean, const Tensor& square,
        const Tensor& gradient, const Tensor& start) {
    const int64_t d = theta.numel();
    const Tensor* given[] = {&theta, &start, &gradient, &mean, &square};
    const char* names[] = {"theta", "start", "gradient", "mean", "square"};
    for (int i = 0; i < 5; ++i) tensors_[i] = lines(op, names[i], *given[i], -1, d, theta);
  }

  template <typename Real>
  AdamPlace<Real> view() const {
    const auto at = [&](int i) { return tensors_[i].const_data_ptr<Real>(); };
    return {at(0), at(1), at(2), at(3), at(4), tensors_[0].numel()};
  }

 private:
  Tensor tensors_[5];
};

ThreeTensors adam_move(const Tensor& theta, const Tensor& mean, const Tensor& square,
                       const Tensor& gradient, const Tensor& start, const Tensor& options) {
  constexpr const char* op = "adam_move";
  const int64_t k = theta.dim() == 2 ? theta.size(0) : -1, d = start.numel();
  const Tensor given[] = {
      lines(op, "theta", theta, k, d, start), lines(op, "mean", mean, k, d, start),
      lines(op, "square", square, k, d, start), lines(op, "gradient", gradient, k, d, start),
      lines(op, "start", start, -1, d, start)};
  const AdamOptions with = options_of(op, options);
  const auto result = [&] { return empty(theta.sizes(), theta); };
  const ThreeTensors after{result(), result(), result()};
  dispatch_real(theta, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for (int64_t line = 0; line < (k < 0 ? 1 : k); ++line) {
      const auto at = [&](int i) { return given[i].const_data_ptr<Real>() + line * d; };
      const auto out = [&](const Tensor& to) { return to.mutable_data_ptr<Real>() + line * d; };
      const AdamPlace<Real> place{at(0), given[4].const_data_ptr<Real>(), at(3), at(1), at(2), d};
      const AdamLines<Real> to{out(std::get<0>(after)), out(std::get<1>(after)),
                               out(std::get<2>(after))};
      double factor, norm;
      kernels.clipping(with, place, &factor, &norm);
      parallel_for(0, d, kThreadWork, [&](int64_t begin, int64_t end) {
        kernels.move(with, place, factor, begin, end, to);
      });
    }
  });
  return after;
}

// Changes of a state [k, d] without gaps.
struct Lines {
  Lines(const char* op, const Tensor& theta, const Tensor& mean, const Tensor& square,
        const Tensor& like)
      : k(theta.dim() == 2 ? theta.size(0) : -2),
        tensors{
            lines(op, "change of theta", theta, std::max<int64_t>(k, 0), like.numel(), like),
            lines(op, "change of mean", mean, std::max<int64_t>(k, 0), like.numel(), like),
            lines(op, "change of square", square, std::max<int64_t>(k, 0), like.numel(), like)} {}

  template <typename Real>
  AdamLines<const Real> view() const {
    const auto at = [&](int i) { return tensors[i].const_data_ptr<Real>(); };
    return {at(0), at(1), at(2)};
  }

  int64_t k;
  Tensor tensors[3];
};

// Runs `act`(kernels, step, factor, dots, only dots): once, or first for the dots that the clipped
// gradient's norm needs.
template <typename Act>
void derivative(const Tensor& theta, const Place& place, const AdamOptions& with, int64_t k,
                Act act) {
  dispatch_real(theta, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    const AdamPlace<Real> at = place.view<Real>();
    double factor, norm;
    kernels.clipping(with, at, &factor, &norm);
    std::vector<double> dots(static_cast<size_t>(k), 0.0);
    if (norm > 0) {
      act(kernels, at, factor, dots.data(), true);
      // g = clip q / (|q| + e): its derivative is factor (1 - q qᵀ / (|q| (|q| + e))).
      for (double& dot : dots) dot /= norm * (norm + 1e-6);
    }
    act(kernels, at, factor, dots.data(), false);
  });
}

ThreeTensors adam_tangent(const Tensor& d_theta, const Tensor& d_mean, const Tensor& d_square,
                          const Tensor& change, const Tensor& theta, const Tensor& mean,
                          const Tensor& square, const Tensor& gradient, const Tensor& start,
                          const Tensor& options) {
  constexpr const char* op = "adam_tangent";
  const Place place(op, theta, mean, square, gradient, start);
  const AdamOptions with = options_of(op, options);
  const Lines before(op, d_theta, d_mean, d_square, theta);
  const Tensor given = lines(op, "change", change, before.k, theta.numel(), theta);
  const auto result = [&] { return empty({before.k, theta.numel()}, theta); };
  const ThreeTensors after{result(), result(), result()};
  derivative(theta, place, with, before.k,
             [&]<typename Real>(const UnrollKernels<Real>& kernels, const AdamPlace<Real>& at,
                                double factor, double* dots, bool only_dots) {
               const AdamLines<Real> to{std::get<0>(after).mutable_data_ptr<Real>(),
                                        std::get<1>(after).mutable_data_ptr<Real>(),
                                        std::get<2>(after).mutable_data_ptr<Real>()};
               kernels.tangent(with, at, factor, before.k, before.view<Real>(),
                               given.const_data_ptr<Real>(), dots, only_dots, to);
             });
  return after;
}

FourTensors adam_transposed(const Tensor& d_theta, const Tensor& d_mean, const Tensor& d_square,
                            const Tensor& theta, const Tensor& mean, const Tensor& square,
                            const Tensor& gradient, const Tensor& start, const Tensor& options) {
  constexpr const char* op = "adam_transposed";
  const Place place(op, theta, mean, square, gradient, start);
  const AdamOptions with = options_of(op, options);
  const Lines later(op, d_theta, d_mean, d_square, theta);
  const auto result = [&] { return empty({later.k, theta.numel()}, theta); };
  const FourTensors out{result(), result(), result(), result()};
  derivative(theta, place, with, later.k,
             [&]<typename Real>(const UnrollKernels<Real>& kernels, const AdamPlace<Real>& at,
                                double factor, double* dots, bool only_dots) {
               const AdamLines<Real> to{std::get<1>(out).mutable_data_ptr<Real>(),
                                        std::get<2>(out).mutable_data_ptr<Real>(),
                                        std::get<3>(out).mutable_data_ptr<Real>()};
               kernels.transposed(with, at, factor, later.k, later.view<Real>(),
                                  std::get<0>(out).mutable_data_ptr<Real>(), dots, only_dots, to);
             });
  return out;
}

// Shares out a table's rows, of `work` multiply-adds altogether.
template <typename Run>
void for_rows(int64_t rows, int64_t work, Run run) {
  const int64_t each = std::max<int64_t>(1, work / std::max<int64_t>(1, rows));
  parallel_for(0, rows, std::max<int64_t>(1, kThreadWork / each), run);
}

// A matrix of a table lies within its array; divided, since products of its numbers may overflow.
void check_span(const char* op, int64_t first, int64_t rows, int64_t columns, int64_t size) {
  FUDLR_CHECK_VALUE(first >= 0 && first <= size && rows >= 0 && columns >= 0 &&
                        (columns == 0 || rows <= (size - first) / columns),
                    op, ": a matrix of the table does not lie within its array");
}

// The table of a projection, its matrices within their arrays.
Tensor sketch_table(const char* op, const Tensor& table, const Tensor& factors, const Tensor& like,
                    int64_t d, int64_t p) {
  check_tensor(op, "table", table, {-1, 7}, kLong, "table", table);
  check_tensor(op, "factors", factors, {-1}, like.scalar_type(), "vectors", like);
  const Tensor dense = table.contiguous();
  const auto* row = reinterpret_cast<const SketchedMatrix*>(dense.const_data_ptr<int64_t>());
  for (int64_t i = 0; i < table.size(0); ++i, ++row) {
    const int64_t width = row->is_b ? row->rows : row->columns;
    FUDLR_CHECK_VALUE(row->count <= width, op, ": a matrix has more directions than its width");
    check_span(op, row->flat, row->rows, row->columns, d);
    check_span(op, row->factor, row->count, width, factors.numel());
    check_span(op, row->sketch, row->count, row->is_b ? row->columns : row->rows, p);
  }
  return dense;
}

// `act`(kernels, matrices, begin, end, factors, from, to) of all matrices: S v or Sᵀ s.
template <typename Act>
Tensor sketched(const char* op, const Tensor& given, int64_t from, int64_t to, const Tensor& table,
                const Tensor& factors, int64_t d, int64_t p, Act act) {
  check_tensor(op, "vectors", given, {-1, from}, given.scalar_type(), "vectors", given);
  FUDLR_CHECK_VALUE(d >= 0 && p >= 0, op, ": ", d, " numbers to ", p, " were asked for");
  const Tensor matrices = sketch_table(op, table, factors, given, d, p);
  const Tensor dense = given.contiguous(), sides = factors.contiguous();
  const int64_t k = given.size(0);
  Tensor out = zeros({k, to}, given);
  if (k == 0) return out;
  dispatch_real(given, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    const auto* rows = reinterpret_cast<const SketchedMatrix*>(matrices.const_data_ptr<int64_t>());
    for_rows(matrices.size(0), k * sides.numel() * 8, [&](int64_t begin, int64_t end) {
      act(kernels, rows, begin, end, sides.const_data_ptr<Real>(), dense.const_data_ptr<Real>(),
          out.mutable_data_ptr<Real>());
    });
  });
  return out;
}

Tensor lora_project(const Tensor& vectors, const Tensor& factors, const Tensor& table, int64_t p) {
  const bool flat = vectors.dim() == 2;
  const int64_t k = flat ? vectors.size(0) : 0, d = flat ? vectors.size(1) : 0;
  return sketched("lora_project", vectors, d, p, table, factors, d, p,
                  [=](const auto& kernels, const SketchedMatrix* rows, int64_t begin, int64_t end,
                      const auto* sides, const auto* from,
                      auto* to) { kernels.project(rows, begin, end, sides, from, k, d, p, to); });
}

Tensor lora_lift(const Tensor& sketches, const Tensor& factors, const Tensor& table, int64_t d) {
  const bool flat = sketches.dim() == 2;
  const int64_t k = flat ? sketches.size(0) : 0, p = flat ? sketches.size(1) : 0;
  return sketched("lora_lift", sketches, p, d, table, factors, d, p,
                  [=](const auto& kernels, const SketchedMatrix* rows, int64_t begin, int64_t end,
                      const auto* sides, const auto* from,
                      auto* to) { kernels.lift(rows, begin, end, sides, from, k, d, p, to); });
}

// θ [d], the inverses and the table of layers, within their arrays and without gaps.
class Point {
 public:
  Point(const char* op, const Tensor& theta, const Tensor& inverse_a, const Tensor& inverse_b,
        const Tensor& layers)
      : theta_(lines(op, "theta", theta, -1, theta.numel(), theta)),
        inverse_a_(lines(op, "inverse of A", inverse_a, -1, inverse_a.numel(), theta)),
        inverse_b_(lines(op, "inverse of B", inverse_b, -1, inverse_a.numel(), theta)) {
    check_tensor(op, "layers", layers, {-1, 5}, kLong, "layers", layers);
    layers_ = layers.contiguous();
    int64_t squares = 0;
    for (int64_t i = 0; i < count(); ++i) {
      const LoraLayer& layer = table()[i];
      check_span(op, layer.a, layer.rank, layer.in, theta.numel());
      check_span(op, layer.b, layer.rank, layer.out, theta.numel());
      check_span(op, squares, layer.rank, layer.rank, inverse_a.numel());
      squares += layer.rank * layer.rank;
      work_ += layer.rank * layer.rank * (layer.in + layer.out);
    }
  }

  int64_t count() const { return layers_.size(0); }
  int64_t work() const { return work_; }

  template <typename Real>
  LoraPoint<Real> view() const {
    return {table(), theta_.const_data_ptr<Real>(), inverse_a_.const_data_ptr<Real>(),
            inverse_b_.const_data_ptr<Real>(), theta_.numel()};
  }

 private:
  const LoraLayer* table() const {
    return reinterpret_cast<const LoraLayer*>(layers_.const_data_ptr<int64_t>());
  }

  Tensor theta_, inverse_a_, inverse_b_, layers_;
  int64_t work_ = 0;
};

Tensor lora_seen(const Tensor& shifts, const Tensor& theta, const Tensor& inverse_a,
                 const Tensor& inverse_b, const Tensor& layers) {
  constexpr const char* op = "lora_seen";
  const Point point(op, theta, inverse_a, inverse_b, layers);
  const int64_t k = shifts.dim() == 2 ? shifts.size(0) : 0;
  const Tensor given = lines(op, "shifts", shifts, k, theta.numel(), theta);
  Tensor out = given.clone();
  dispatch_real(theta, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_rows(point.count(), (4 * k + 2) * point.work(), [&](int64_t begin, int64_t end) {
      kernels.seen(point.view<Real>(), begin, end, given.const_data_ptr<Real>(), k,
                   out.mutable_data_ptr<Real>());
    });
  });
  return out;
}

Tensor lora_views(const Tensor& total, const Tensor& shifts, const Tensor& theta,
                  const Tensor& inverse_a, const Tensor& inverse_b, const Tensor& layers) {
  constexpr const char* op = "lora_views";
  const Point point(op, theta, inverse_a, inverse_b, layers);
  const int64_t k = shifts.dim() == 2 ? shifts.size(0) : 0, d = theta.numel();
  const bool each = total.dim() == 2;
  const Tensor views = lines(op, "total", total, each ? k : -1, d, theta);
  const Tensor given = lines(op, "shifts", shifts, k, d, theta);
  Tensor out = zeros({k, d}, theta);
  dispatch_real(theta, [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    for_rows(point.count(), (4 * k + (each ? 4 * k : 4)) * point.work(),
             [&](int64_t begin, int64_t end) {
               kernels.views(point.view<Real>(), begin, end, views.const_data_ptr<Real>(),
                             each ? d : 0, given.const_data_ptr<Real>(), k,
                             out.mutable_data_ptr<Real>());
             });
  });
  return out;
}

}  // namespace

FUDLR_LIBRARY_IMPL(fudlr_unroll, CPU, m) {
  m.impl<&adam_move>("adam_move");
  m.impl<&adam_tangent>("adam_tangent");
  m.impl<&adam_transposed>("adam_transposed");
  m.impl<&lora_project>("lora_project");
  m.impl<&lora_lift>("lora_lift");
  m.impl<&lora_seen>("lora_seen");
  m.impl<&lora_views>("lora_views");
}

}  // namespace fudlr
