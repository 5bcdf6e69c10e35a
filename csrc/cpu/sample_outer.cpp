// sample_grads, sample_dots and grad_sum on the CPU: tensors, threads and registration.
#include <algorithm>
#include <type_traits>

#include "abi/library.h"
#include "abi/parallel.h"
#include "checks.h"
#include "cpu/choose.h"
#include "cpu/sample_outer_kernel.h"

namespace fudlr {
namespace {

// left and right as narrow and wide, and the matrices' strides turned the same way.
template <typename In>
class Oriented {
 public:
  Oriented(const SampleShape& shape, const Tensor& left, const Tensor& right, const Tensor& offsets)
      : left_(with_dense_rows(left)),
        right_(with_dense_rows(right)),
        offsets_(offsets.contiguous()),
        left_is_narrow_(shape.left <= shape.right) {
    const Tensor& narrow = left_is_narrow_ ? left_ : right_;
    const Tensor& wide = left_is_narrow_ ? right_ : left_;
    samples_ = {factor<In>(narrow), factor<In>(wide), offsets_.const_data_ptr<int64_t>()};
  }

  const Samples<In>& samples() const { return samples_; }
  int64_t narrow() const { return samples_.narrow.size; }
  int64_t wide() const { return samples_.wide.size; }

  template <typename Real>
  Matrices<Real> matrices(Real* data, const Tensor& stack) const {
    const int64_t left = stack.stride(1);
    const int64_t right = stack.stride(2);
    return {data, stack.stride(0), left_is_narrow_ ? left : right, left_is_narrow_ ? right : left};
  }

 private:
  Tensor left_, right_, offsets_;
  bool left_is_narrow_;
  Samples<In> samples_;
};

int64_t samples_per_thread(const SampleShape& shape, int64_t vectors) {
  const int64_t positions = shape.positions + shape.samples * vectors;
  const int64_t work = shape.left * shape.right * positions / std::max<int64_t>(shape.samples, 1);
  return std::max<int64_t>(1, kThreadWork / std::max<int64_t>(work, 1));
}

SampleShape check(const char* op, const Tensor& left, const Tensor& right, const Tensor& offsets) {
  const SampleShape shape = check_samples(op, left, right, offsets);
  check_offset_values(op, shape, offsets.contiguous().const_data_ptr<int64_t>());
  return shape;
}

Tensor sample_grads(const Tensor& left, const Tensor& right, const Tensor& offsets) {
  const SampleShape shape = check("sample_grads", left, right, offsets);
  Tensor grads = empty({shape.samples, shape.left, shape.right}, left, result_type(left));
  if (grads.numel() == 0) return grads;
  dispatch(left.scalar_type(), FUDLR_TABLE(sample_outer),
           [&](const auto& kernels, auto in, auto real) {
             using Real = decltype(real);
             const Oriented<decltype(in)> oriented(shape, left, right, offsets);
             const auto target = oriented.matrices(grads.mutable_data_ptr<Real>(), grads);
             parallel_for(0, shape.samples, samples_per_thread(shape, 0),
                          [&](int64_t begin, int64_t end) {
                            kernels.grads(oriented.samples(), begin, end, target);
                          });
           });
  return grads;
}

Tensor sample_dots(const Tensor& left, const Tensor& right, const Tensor& vectors,
                   const Tensor& offsets) {
  const SampleShape shape = check("sample_dots", left, right, offsets);
  check_vectors("sample_dots", shape, left, vectors);
  const int64_t k = vectors.size(0);
  Tensor dots = zeros({shape.samples, k}, vectors);
  if (dots.numel() == 0 || vectors.numel() == 0) return dots;
  dispatch(left.scalar_type(), FUDLR_TABLE(sample_outer),
           [&](const auto& kernels, auto in, auto real) {
             using Real = decltype(real);
             const Oriented<decltype(in)> oriented(shape, left, right, offsets);
             const Tensor packed =
                 empty({kernels.packed_size(oriented.narrow(), oriented.wide(), k)}, vectors);
             Real* packed_data = packed.mutable_data_ptr<Real>();
             kernels.pack(oriented.matrices(vectors.const_data_ptr<Real>(), vectors),
                          oriented.narrow(), oriented.wide(), k, packed_data);
             Real* dots_data = dots.mutable_data_ptr<Real>();
             parallel_for(0, shape.samples, samples_per_thread(shape, k),
                          [&](int64_t begin, int64_t end) {
                            kernels.dots(oriented.samples(), begin, end, packed_data, k, dots_data);
                          });
           });
  return dots;
}

Tensor grad_sum(const Tensor& left, const Tensor& right, const Tensor& weights,
                const Tensor& offsets) {
  const SampleShape shape = check("grad_sum", left, right, offsets);
  check_weights("grad_sum", shape, left, weights);
  const int64_t count = weights.size(0);
  Tensor sums = zeros({count, shape.left, shape.right}, weights);
  if (sums.numel() == 0 || shape.samples == 0) return sums;
  dispatch(left.scalar_type(), FUDLR_TABLE(sample_outer),
           [&](const auto& kernels, auto in, auto real) {
             using Real = decltype(real);
             const Oriented<decltype(in)> oriented(shape, left, right, offsets);
             const Tensor dense = weights.contiguous();
             const Real* weight_data = dense.const_data_ptr<Real>();
             const auto target = oriented.matrices(sums.mutable_data_ptr<Real>(), sums);
             const int64_t panels = kernels.panels(oriented.wide());
             const int64_t work = shape.left * shape.right * shape.positions * count / panels;
             // Threads share the panels, so that each number is one thread's sum, in one order.
             parallel_for(0, panels, std::max<int64_t>(1, kThreadWork / std::max<int64_t>(work, 1)),
                          [&](int64_t begin, int64_t end) {
                            kernels.sum(oriented.samples(), shape.samples, weight_data, count,
                                        begin, end, target);
                          });
           });
  return sums;
}

}  // namespace

FUDLR_LIBRARY_IMPL(fudlr, CPU, m) {
  m.impl<&sample_grads>("sample_grads");
  m.impl<&sample_dots>("sample_dots");
  m.impl<&grad_sum>("grad_sum");
}

}  // namespace fudlr
