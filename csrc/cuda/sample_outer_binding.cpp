// sample_grads, sample_dots and grad_sum on a GPU: tensors, scratch memory and registration.
#include "checks.h"
#include "cuda/device.h"
#include "cuda/sample_outer.h"

namespace fudlr {
namespace {

gpu::Rows rows_of(const Tensor& factor) {
  return {factor.const_data_ptr(), factor.size(0) <= 1 ? factor.size(1) : factor.stride(0),
          factor.size(1)};
}

// Left and right as narrow and wide, with the verdict on the offsets under way.
class Oriented {
 public:
  Oriented(const char* op, const SampleShape& shape, const Tensor& left, const Tensor& right,
           const Tensor& offsets, void* stream)
      : left_(with_dense_rows(left)),
        right_(with_dense_rows(right)),
        offsets_(offsets.contiguous()),
        bad_(empty({1}, offsets, kInt)),
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

  gpu::Stack stack(const Tensor& matrices) const {
    const int64_t left = matrices.stride(1);
    const int64_t right = matrices.stride(2);
    return {matrices.mutable_data_ptr(), matrices.stride(0), left_is_narrow_ ? left : right,
            left_is_narrow_ ? right : left};
  }

  // [k, a, b] as [k, narrow, wide] without gaps.
  Tensor turned(const Tensor& matrices) const {
    return (left_is_narrow_ ? matrices : matrices.transpose(1, 2)).contiguous();
  }

 private:
  Tensor left_, right_, offsets_, bad_;
  bool left_is_narrow_;
  gpu::Samples samples_;
};

Tensor sample_grads(const Tensor& left, const Tensor& right, const Tensor& offsets) {
  const SampleShape shape = check_samples("sample_grads", left, right, offsets);
  const OnDevice device(left);
  Tensor grads = empty({shape.samples, shape.left, shape.right}, left, result_type(left));
  if (grads.numel() == 0) return grads;
  const Oriented oriented("sample_grads", shape, left, right, offsets, device.stream());
  check_launch("sample_grads",
               gpu::sample_grads(oriented.samples(), oriented.stack(grads), device.stream()));
  return grads;
}

Tensor sample_dots(const Tensor& left, const Tensor& right, const Tensor& vectors,
                   const Tensor& offsets) {
  const SampleShape shape = check_samples("sample_dots", left, right, offsets);
  check_vectors("sample_dots", shape, left, vectors);
  const OnDevice device(left);
  const int64_t k = vectors.size(0);
  if (shape.samples * k == 0 || vectors.numel() == 0) {
    return zeros({shape.samples, k}, vectors);
  }
  Tensor dots = empty({shape.samples, k}, vectors);
  const Oriented oriented("sample_dots", shape, left, right, offsets, device.stream());
  const Tensor turned = oriented.turned(vectors);
  const Tensor work = empty({gpu::dots_work(oriented.samples(), k)}, vectors);
  check_launch("sample_dots",
               gpu::sample_dots(oriented.samples(), turned.const_data_ptr(), k,
                                work.mutable_data_ptr(), dots.mutable_data_ptr(), device.stream()));
  return dots;
}

Tensor grad_sum(const Tensor& left, const Tensor& right, const Tensor& weights,
                const Tensor& offsets) {
  const SampleShape shape = check_samples("grad_sum", left, right, offsets);
  check_weights("grad_sum", shape, left, weights);
  const OnDevice device(left);
  const int64_t count = weights.size(0);
  if (count * shape.left * shape.right == 0 || shape.samples == 0) {
    return zeros({count, shape.left, shape.right}, weights);
  }
  Tensor sums = empty({count, shape.left, shape.right}, weights);
  const Oriented oriented("grad_sum", shape, left, right, offsets, device.stream());
  const Tensor dense = weights.contiguous();
  const Tensor work = empty({gpu::sum_work(oriented.samples(), count)}, weights);
  check_launch("grad_sum",
               gpu::grad_sum(oriented.samples(), dense.const_data_ptr(), count,
                             work.mutable_data_ptr(), oriented.stack(sums), device.stream()));
  return sums;
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl<&sample_grads>("sample_grads");
  m.impl<&sample_dots>("sample_dots");
  m.impl<&grad_sum>("grad_sum");
}

}  // namespace fudlr
