// Tensors as the sample_outer launchers take them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "checks.h"
#include "cuda/device.h"
#include "cuda/sample_outer.h"

namespace fudlr {

inline gpu::Rows rows_of(const at::Tensor& factor) {
  return {factor.const_data_ptr(), factor.size(0) <= 1 ? factor.size(1) : factor.stride(0),
          factor.size(1)};
}

// Left and right as narrow and wide, with the verdict on the offsets under way.
class Oriented {
 public:
  Oriented(const char* op, const SampleShape& shape, const at::Tensor& left,
           const at::Tensor& right, const at::Tensor& offsets, void* stream)
      : left_(with_dense_rows(left)),
        right_(with_dense_rows(right)),
        offsets_(offsets.contiguous()),
        bad_(at::empty({1}, offsets.options().dtype(at::kInt))),
        left_is_narrow_(shape.left <= shape.right) {
    samples_ = {number_of(left),
                rows_of(left_is_narrow_ ? left_ : right_),
                rows_of(left_is_narrow_ ? right_ : left_),
                offsets_.const_data_ptr<int64_t>(),
                shape.samples,
                shape.positions,
                bad_.const_data_ptr<int>()};
    check_launch(op, gpu::check_offsets(samples_.offsets, shape.samples, shape.positions,
                                        bad_.mutable_data_ptr<int>(), stream));
  }

  const gpu::Samples& samples() const { return samples_; }

  gpu::Stack stack(const at::Tensor& matrices) const {
    const int64_t left = matrices.stride(1);
    const int64_t right = matrices.stride(2);
    return {matrices.mutable_data_ptr(), matrices.stride(0), left_is_narrow_ ? left : right,
            left_is_narrow_ ? right : left};
  }

  // [k, a, b] as [k, narrow, wide] without gaps.
  at::Tensor turned(const at::Tensor& matrices) const {
    return (left_is_narrow_ ? matrices : matrices.transpose(1, 2)).contiguous();
  }

 private:
  at::Tensor left_, right_, offsets_, bad_;
  bool left_is_narrow_;
  gpu::Samples samples_;
};

}  // namespace fudlr
