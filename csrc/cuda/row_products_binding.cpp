// row_dots, row_sums and row_gram on a GPU: tensors, scratch memory and registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cuda/device.h"
#include "cuda/row_products.h"

namespace fudlr {
namespace {

// Rows and scales that stay alive and dense for the call.
class StoredRows {
 public:
  StoredRows(const at::Tensor& rows, const std::optional<at::Tensor>& scales)
      : rows_(with_dense_rows(rows)), scales_(scales ? with_dense_rows(*scales) : at::Tensor()) {}

  gpu::StoredRows view() const {
    const bool scaled = scales_.defined();
    return {number_of(rows_),
            rows_.const_data_ptr(),
            rows_.stride(0),
            rows_.size(0),
            rows_.size(1),
            scaled ? scales_.const_data_ptr<float>() : nullptr,
            scaled ? scales_.stride(0) : 0};
  }

 private:
  at::Tensor rows_, scales_;
};

void check_vectors_of(const char* op, const at::Tensor& rows,
                      const std::optional<at::Tensor>& scales, const at::Tensor& vectors) {
  check_stored_rows(op, rows, scales);
  check_tensor(op, "vectors", vectors, {-1, rows.size(1)}, result_type(rows), "rows", rows);
}

at::Tensor row_dots(const at::Tensor& rows, const at::Tensor& vectors,
                    const std::optional<at::Tensor>& scales) {
  constexpr const char* op = "row_dots";
  check_vectors_of(op, rows, scales, vectors);
  const OnDevice device(rows);
  const int64_t k = vectors.size(0);
  if (rows.numel() == 0 || k == 0) return at::zeros({rows.size(0), k}, vectors.options());
  at::Tensor dots = at::empty({rows.size(0), k}, vectors.options());
  const StoredRows stored(rows, scales);
  const at::Tensor dense = vectors.contiguous();
  const at::Tensor work = scratch(gpu::row_dots_work(stored.view(), k), vectors);
  check_launch(op, gpu::row_dots(stored.view(), dense.const_data_ptr(), k, work.mutable_data_ptr(),
                                 dots.mutable_data_ptr(), device.stream()));
  return dots;
}

at::Tensor row_sums(const at::Tensor& rows, const at::Tensor& weights,
                    const std::optional<at::Tensor>& scales) {
  constexpr const char* op = "row_sums";
  check_stored_rows(op, rows, scales);
  check_tensor(op, "weights", weights, {-1, rows.size(0)}, result_type(rows), "rows", rows);
  const OnDevice device(rows);
  const int64_t count = weights.size(0);
  const at::TensorOptions options = weights.options().dtype(at::kDouble);
  if (rows.numel() == 0 || count == 0) return at::zeros({count, rows.size(1)}, options);
  at::Tensor sums = at::empty({count, rows.size(1)}, options);
  const StoredRows stored(rows, scales);
  const gpu::Coefficients coefficients{weights.const_data_ptr(), weights.stride(1),
                                       weights.stride(0), nullptr};
  const at::Tensor work = scratch(gpu::row_sums_work(stored.view(), count), weights);
  check_launch(op, gpu::row_sums(stored.view(), coefficients, count, work.mutable_data_ptr(),
                                 sums.mutable_data_ptr<double>(), device.stream()));
  return sums;
}

std::tuple<at::Tensor, at::Tensor> row_gram(const at::Tensor& rows, const at::Tensor& vectors,
                                            const std::optional<at::Tensor>& weights,
                                            const std::optional<at::Tensor>& scales) {
  constexpr const char* op = "row_gram";
  check_vectors_of(op, rows, scales, vectors);
  if (weights) {
    check_tensor(op, "weights", *weights, {rows.size(0)}, result_type(rows), "rows", rows);
  }
  const OnDevice device(rows);
  const int64_t k = vectors.size(0);
  const at::TensorOptions options = vectors.options().dtype(at::kDouble);
  if (rows.numel() == 0 || k == 0) {
    return {at::zeros({rows.size(0), k}, vectors.options()), at::zeros({k, rows.size(1)}, options)};
  }
  at::Tensor dots = at::empty({rows.size(0), k}, vectors.options());
  at::Tensor sums = at::empty({k, rows.size(1)}, options);
  const StoredRows stored(rows, scales);
  const at::Tensor dense = vectors.contiguous();
  const at::Tensor each = weights ? weights->contiguous() : at::Tensor();
  const at::Tensor dots_work = scratch(gpu::row_gram_dots_work(stored.view(), k), vectors);
  const at::Tensor sums_work = scratch(gpu::row_sums_work(stored.view(), k), vectors);
  check_launch(
      op, gpu::row_gram(stored.view(), dense.const_data_ptr(),
                        weights ? each.const_data_ptr() : nullptr, k, dots_work.mutable_data_ptr(),
                        sums_work.mutable_data_ptr(), dots.mutable_data_ptr(),
                        sums.mutable_data_ptr<double>(), device.stream()));
  return {dots, sums};
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl("row_dots", &row_dots);
  m.impl("row_sums", &row_sums);
  m.impl("row_gram", &row_gram);
}

}  // namespace fudlr
