// row_dots, row_sums and row_gram on the CPU: tensors, threads and registration.
#include <algorithm>

#include "abi/library.h"
#include "abi/parallel.h"
#include "checks.h"
#include "cpu/choose.h"
#include "cpu/row_products_kernel.h"

namespace fudlr {
namespace {

// Partial sums are held for so many chunks a thread, so that fast threads need not wait.
constexpr int64_t kChunksPerThread = 4;

// Rows and scales that stay alive and dense for the call.
class Rows {
 public:
  Rows(const Tensor& rows, const OptionalTensor& scales)
      : rows_(with_dense_rows(rows)), scales_(scales ? with_dense_rows(*scales) : Tensor()) {}

  int64_t count() const { return rows_.size(0); }

  template <typename In>
  StoredRows<In> view() const {
    const bool scaled = scales_.defined();
    return {static_cast<const In*>(rows_.const_data_ptr()),
            rows_.stride(0),
            rows_.size(0),
            rows_.size(1),
            scaled ? scales_.const_data_ptr<float>() : nullptr,
            scaled ? scales_.stride(0) : 0};
  }

 private:
  Tensor rows_, scales_;
};

template <typename Run>
void dispatch_rows(const Tensor& rows, Run run) {
  const RowProductsTable& table = FUDLR_TABLE(row_products);
  if (rows.scalar_type() == kChar) {
    run(table.int8, Int8{}, float{});
  } else {
    dispatch(rows.scalar_type(), table, run);
  }
}

// Adds the partial sums of `chunks` chunks to totals [lines, p], chunk after chunk.
template <typename Real>
void join(const Real* partial, int64_t chunks, int64_t lines, int64_t line, int64_t p,
          double* totals) {
  parallel_for(0, lines, std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, p * chunks)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                   for (int64_t j = begin; j < end; ++j) {
                     const Real* from = partial + (chunk * lines + j) * line;
                     for (int64_t c = 0; c < p; ++c) totals[j * p + c] += from[c];
                   }
                 }
               });
}

// Goes through all rows. Chunks are shared out; their sums join the totals in the rows' order,
// so that no number depends on the threads.
template <typename In, typename Real>
void pass(const RowKernels<In, Real>& kernels, const StoredRows<In>& rows,
          const RowTask<Real>& task, const Tensor& like, double* totals) {
  const int64_t chunks = (rows.count + kRowChunk - 1) / kRowChunk;
  const int64_t line = kernels.line_size(rows.size);
  const int64_t work = std::max<int64_t>(1, kRowChunk * rows.size * task.lines);
  const int64_t grain = std::max<int64_t>(1, kThreadWork / work);
  const int64_t threads = num_threads();
  const int64_t wave = !task.sums ? chunks : threads == 1 ? 1 : threads * kChunksPerThread;
  Tensor partials = empty({task.sums ? std::min(wave, chunks) : 0, task.lines, line}, like);
  Real* partial = partials.mutable_data_ptr<Real>();
  for (int64_t first = 0; first < chunks; first += wave) {
    const int64_t count = std::min(wave, chunks - first);
    parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = (first + i) * kRowChunk;
        kernels.chunk(rows, task, row, std::min(row + kRowChunk, rows.count),
                      task.sums ? partial + i * task.lines * line : nullptr);
      }
    });
    if (task.sums) join(partial, count, task.lines, line, rows.size, totals);
  }
}

// Vectors [k, p] in the kernels' order.
template <typename In, typename Real>
Tensor packed(const RowKernels<In, Real>& kernels, const Tensor& vectors) {
  const Tensor dense = with_dense_rows(vectors);
  Tensor out = empty({vectors.size(0), kernels.line_size(vectors.size(1))}, vectors);
  kernels.pack(dense.const_data_ptr<Real>(), dense.stride(0), dense.size(0), dense.size(1),
               out.mutable_data_ptr<Real>());
  return out;
}

void check_vectors_of(const char* op, const Tensor& rows, const OptionalTensor& scales,
                      const Tensor& vectors) {
  check_stored_rows(op, rows, scales);
  check_tensor(op, "vectors", vectors, {-1, rows.size(1)}, result_type(rows), "rows", rows);
}

Tensor row_dots(const Tensor& rows, const Tensor& vectors, const OptionalTensor& scales) {
  check_vectors_of("row_dots", rows, scales, vectors);
  Tensor dots = zeros({rows.size(0), vectors.size(0)}, vectors);
  if (dots.numel() == 0) return dots;
  const Rows view(rows, scales);
  dispatch_rows(rows, [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const Tensor lines = packed(kernels, vectors);
    const RowTask<Real> task{vectors.size(0),
                             lines.const_data_ptr<Real>(),
                             dots.mutable_data_ptr<Real>(),
                             nullptr,
                             0,
                             false};
    pass(kernels, view.view<decltype(in)>(), task, vectors, nullptr);
  });
  return dots;
}

Tensor row_sums(const Tensor& rows, const Tensor& weights, const OptionalTensor& scales) {
  constexpr const char* op = "row_sums";
  check_stored_rows(op, rows, scales);
  check_tensor(op, "weights", weights, {-1, rows.size(0)}, result_type(rows), "rows", rows);
  Tensor sums = zeros({weights.size(0), rows.size(1)}, weights, kDouble);
  if (sums.numel() == 0) return sums;
  const Rows view(rows, scales);
  const Tensor dense = with_dense_rows(weights);
  dispatch_rows(rows, [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const RowTask<Real> task{weights.size(0), nullptr, nullptr, dense.const_data_ptr<Real>(),
                             dense.stride(0), true};
    pass(kernels, view.view<decltype(in)>(), task, weights, sums.mutable_data_ptr<double>());
  });
  return sums;
}

TwoTensors row_gram(const Tensor& rows, const Tensor& vectors, const OptionalTensor& weights,
                    const OptionalTensor& scales) {
  constexpr const char* op = "row_gram";
  check_vectors_of(op, rows, scales, vectors);
  if (weights) {
    check_tensor(op, "weights", *weights, {rows.size(0)}, result_type(rows), "rows", rows);
  }
  Tensor dots = zeros({rows.size(0), vectors.size(0)}, vectors);
  Tensor sums = zeros({vectors.size(0), rows.size(1)}, vectors, kDouble);
  if (dots.numel() == 0) return {dots, sums};
  const Rows view(rows, scales);
  const Tensor dense = weights ? weights->contiguous() : Tensor();
  dispatch_rows(rows, [&](const auto& kernels, auto in, auto real) {
    using Real = decltype(real);
    const Tensor lines = packed(kernels, vectors);
    const RowTask<Real> task{vectors.size(0),
                             lines.const_data_ptr<Real>(),
                             dots.mutable_data_ptr<Real>(),
                             weights ? dense.const_data_ptr<Real>() : nullptr,
                             0,
                             true};
    pass(kernels, view.view<decltype(in)>(), task, vectors, sums.mutable_data_ptr<double>());
  });
  return {dots, sums};
}

}  // namespace

FUDLR_LIBRARY_IMPL(fudlr, CPU, m) {
  m.impl<&row_dots>("row_dots");
  m.impl<&row_sums>("row_sums");
  m.impl<&row_gram>("row_gram");
}

}  // namespace fudlr
