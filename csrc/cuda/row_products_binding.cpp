// row_dots, row_sums and row_gram on a GPU: tensors, scratch memory and registration.
#include "checks.h"
#include "cuda/device.h"
#include "cuda/row_products.h"

namespace fudlr {
namespace {

// Rows and scales that stay alive and dense for the call.
class StoredRows {
 public:
  StoredRows(const Tensor& rows, const OptionalTensor& scales)
      : rows_(with_dense_rows(rows)), scales_(scales ? with_dense_rows(*scales) : Tensor()) {}

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
  Tensor rows_, scales_;
};

void check_vectors_of(const char* op, const Tensor& rows, const OptionalTensor& scales,
                      const Tensor& vectors) {
  check_stored_rows(op, rows, scales);
  check_tensor(op, "vectors", vectors, {-1, rows.size(1)}, result_type(rows), "rows", rows);
}

Tensor row_dots(const Tensor& rows, const Tensor& vectors, const OptionalTensor& scales) {
  constexpr const char* op = "row_dots";
  check_vectors_of(op, rows, scales, vectors);
  const OnDevice device(rows);
  const int64_t k = vectors.size(0);
  if (rows.numel() == 0 || k == 0) return zeros({rows.size(0), k}, vectors);
  Tensor dots = empty({rows.size(0), k}, vectors);
  const StoredRows stored(rows, scales);
  const Tensor dense = vectors.contiguous();
  const Tensor work = scratch(gpu::row_dots_work(stored.view(), k), vectors);
  check_launch(op, gpu::row_dots(stored.view(), dense.const_data_ptr(), k, work.mutable_data_ptr(),
                                 dots.mutable_data_ptr(), device.stream()));
  return dots;
}

Tensor row_sums(const Tensor& rows, const Tensor& weights, const OptionalTensor& scales) {
  constexpr const char* op = "row_sums";
  check_stored_rows(op, rows, scales);
  check_tensor(op, "weights", weights, {-1, rows.size(0)}, result_type(rows), "rows", rows);
  const OnDevice device(rows);
  const int64_t count = weights.size(0);
  if (rows.numel() == 0 || count == 0) return zeros({count, rows.size(1)}, weights, kDouble);
  Tensor sums = empty({count, rows.size(1)}, weights, kDouble);
  const StoredRows stored(rows, scales);
  const gpu::Coefficients coefficients{weights.const_data_ptr(), weights.stride(1),
                                       weights.stride(0), nullptr};
  const Tensor work = scratch(gpu::row_sums_work(stored.view(), count), weights);
  check_launch(op, gpu::row_sums(stored.view(), coefficients, count, work.mutable_data_ptr(),
                                 sums.mutable_data_ptr<double>(), device.stream()));
  return sums;
}

TwoTensors row_gram(const Tensor& rows, const Tensor& vectors, const OptionalTensor& weights,
                    const OptionalTensor& scales) {
  constexpr const char* op = "row_gram";
  check_vectors_of(op, rows, scales, vectors);
  if (weights) {
    check_tensor(op, "weights", *weights, {rows.size(0)}, result_type(rows), "rows", rows);
  }
  const OnDevice device(rows);
  const int64_t k = vectors.size(0);
  if (rows.numel() == 0 || k == 0) {
    return {zeros({rows.size(0), k}, vectors), zeros({k, rows.size(1)}, vectors, kDouble)};
  }
  Tensor dots = empty({rows.size(0), k}, vectors);
  Tensor sums = empty({k, rows.size(1)}, vectors, kDouble);
  const StoredRows stored(rows, scales);
  const Tensor dense = vectors.contiguous();
  const Tensor each = weights ? weights->contiguous() : Tensor();
  const Tensor dots_work = scratch(gpu::row_gram_dots_work(stored.view(), k), vectors);
  const Tensor sums_work = scratch(gpu::row_sums_work(stored.view(), k), vectors);
  check_launch(
      op, gpu::row_gram(stored.view(), dense.const_data_ptr(),
                        weights ? each.const_data_ptr() : nullptr, k, dots_work.mutable_data_ptr(),
                        sums_work.mutable_data_ptr(), dots.mutable_data_ptr(),
                        sums.mutable_data_ptr<double>(), device.stream()));
  return {dots, sums};
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl<&row_dots>("row_dots");
  m.impl<&row_sums>("row_sums");
  m.impl<&row_gram>("row_gram");
}

}  // namespace fudlr
