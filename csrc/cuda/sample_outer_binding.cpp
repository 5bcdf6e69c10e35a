// sample_grads, sample_dots and grad_sum on a GPU: tensors, scratch memory and registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "checks.h"
#include "cuda/device.h"
#include "cuda/oriented.h"
#include "cuda/sample_outer.h"

namespace fudlr {
namespace {

at::Tensor sample_grads(const at::Tensor& left, const at::Tensor& right,
                        const at::Tensor& offsets) {
  const SampleShape shape = check_samples("sample_grads", left, right, offsets);
  const OnDevice device(left);
  at::Tensor grads =
      at::empty({shape.samples, shape.left, shape.right}, left.options().dtype(result_type(left)));
  if (grads.numel() == 0) return grads;
  const Oriented oriented("sample_grads", shape, left, right, offsets, device.stream());
  check_launch("sample_grads",
               gpu::sample_grads(oriented.samples(), oriented.stack(grads), device.stream()));
  return grads;
}

at::Tensor sample_dots(const at::Tensor& left, const at::Tensor& right, const at::Tensor& vectors,
                       const at::Tensor& offsets) {
  const SampleShape shape = check_samples("sample_dots", left, right, offsets);
  check_vectors("sample_dots", shape, left, vectors);
  const OnDevice device(left);
  const int64_t k = vectors.size(0);
  if (shape.samples * k == 0 || vectors.numel() == 0) {
    return at::zeros({shape.samples, k}, vectors.options());
  }
  at::Tensor dots = at::empty({shape.samples, k}, vectors.options());
  const Oriented oriented("sample_dots", shape, left, right, offsets, device.stream());
  const at::Tensor turned = oriented.turned(vectors);
  const at::Tensor work = at::empty({gpu::dots_work(oriented.samples(), k)}, vectors.options());
  check_launch("sample_dots",
               gpu::sample_dots(oriented.samples(), turned.const_data_ptr(), k,
                                work.mutable_data_ptr(), dots.mutable_data_ptr(), device.stream()));
  return dots;
}

at::Tensor grad_sum(const at::Tensor& left, const at::Tensor& right, const at::Tensor& weights,
                    const at::Tensor& offsets) {
  const SampleShape shape = check_samples("grad_sum", left, right, offsets);
  check_weights("grad_sum", shape, left, weights);
  const OnDevice device(left);
  const int64_t count = weights.size(0);
  if (count * shape.left * shape.right == 0 || shape.samples == 0) {
    return at::zeros({count, shape.left, shape.right}, weights.options());
  }
  at::Tensor sums = at::empty({count, shape.left, shape.right}, weights.options());
  const Oriented oriented("grad_sum", shape, left, right, offsets, device.stream());
  const at::Tensor dense = weights.contiguous();
  const at::Tensor work = at::empty({gpu::sum_work(oriented.samples(), count)}, weights.options());
  check_launch("grad_sum",
               gpu::grad_sum(oriented.samples(), dense.const_data_ptr(), count,
                             work.mutable_data_ptr(), oriented.stack(sums), device.stream()));
  return sums;
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) {
  m.impl("sample_grads", &sample_grads);
  m.impl("sample_dots", &sample_dots);
  m.impl("grad_sum", &grad_sum);
}

}  // namespace fudlr
