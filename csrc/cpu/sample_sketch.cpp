// sample_sketch on the CPU: S_i = Σ_t (P_l left_t)(P_r right_t)ᵀ. Tensors, threads, registration.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>

#include "checks.h"
#include "cpu/choose.h"
#include "cpu/sample_outer_kernel.h"
#include "cpu/sample_sketch_kernel.h"

namespace fudlr {
namespace {

// Positions that are projected before their outer products are taken: both factors of so many
// stay in L2.
constexpr int64_t kGroup = 256;

// One factor of the sketch: as it is, or packed for projection.
template <typename In, typename Real>
class Side {
 public:
  Side(const SampleSketchKernels<In, Real>& kernels, const at::Tensor& rows,
       const std::optional<at::Tensor>& projection)
      : kernels_(kernels), rows_(with_dense_rows(rows)), size_(rows.size(1)) {
    if (!projection) return;
    size_ = projection->size(0);
    const at::Tensor dense = with_dense_rows(*projection);
    packed_ = at::empty({kernels.packed_size(size_, rows.size(1))}, dense.options());
    kernels.pack(dense.const_data_ptr<Real>(), dense.stride(0), size_, dense.size(1),
                 packed_.mutable_data_ptr<Real>());
  }

  int64_t size() const { return size_; }
  bool projected() const { return packed_.defined(); }

  // Multiply-adds that one position costs.
  int64_t work() const { return projected() ? size_ * rows_.size(1) : 0; }
  int64_t scratch(int64_t positions) const { return positions * kernels_.row_size(size_); }

  // Positions first .. first + count as rows of Real, in `scratch` unless they are so already.
  Factor<Real> make(int64_t first, int64_t count, Real* scratch) const {
    const Factor<In> rows = plain();
    const int64_t stride = kernels_.row_size(size_);
    if (projected()) {
      kernels_.project(rows, first, count, packed_.const_data_ptr<Real>(), size_, scratch);
      return {scratch, stride, size_};
    }
    if constexpr (std::is_same_v<In, Real>) {
      return {rows.data + first * rows.stride, rows.stride, size_};
    } else {
      for (int64_t t = 0; t < count; ++t) {
        const In* from = rows.data + (first + t) * rows.stride;
        for (int64_t j = 0; j < size_; ++j) {
          scratch[t * stride + j] = c10::detail::f32_from_bits(from[j].bits);
        }
      }
      return {scratch, stride, size_};
    }
  }

 private:
  Factor<In> plain() const { return factor<In>(rows_); }

  const SampleSketchKernels<In, Real>& kernels_;
  at::Tensor rows_;
  at::Tensor packed_;
  int64_t size_;
};

// Sketches of the samples begin .. end, as many at a time as make up a group of positions.
template <typename In, typename Real>
void sketch(const Side<In, Real>& left, const Side<In, Real>& right,
            const SampleOuterKernels<Real, Real>& outer, const int64_t* offsets, int64_t begin,
            int64_t end, Real* sketches) {
  int64_t longest = kGroup;
  for (int64_t i = begin; i < end; ++i) {
    longest = std::max(longest, offsets[i + 1] - offsets[i]);
  }
  const std::unique_ptr<Real[]> left_rows(new Real[left.scratch(longest)]);
  const std::unique_ptr<Real[]> right_rows(new Real[right.scratch(longest)]);
  const std::unique_ptr<int64_t[]> places(new int64_t[end - begin + 1]);
  const bool left_is_narrow = left.size() <= right.size();
  const int64_t row = right.size();
  for (int64_t i = begin; i < end;) {
    int64_t stop = i + 1;
    while (stop < end && offsets[stop + 1] - offsets[i] <= longest) ++stop;
    for (int64_t s = i; s <= stop; ++s) places[s - i] = offsets[s] - offsets[i];
    const int64_t count = offsets[stop] - offsets[i];
    const Factor<Real> l = left.make(offsets[i], count, left_rows.get());
    const Factor<Real> r = right.make(offsets[i], count, right_rows.get());
    const Samples<Real> samples{left_is_narrow ? l : r, left_is_narrow ? r : l, places.get()};
    outer.grads(samples, 0, stop - i,
                {sketches + i * left.size() * row, left.size() * row, left_is_narrow ? row : 1,
                 left_is_narrow ? 1 : row});
    i = stop;
  }
}

at::Tensor sample_sketch(const at::Tensor& left, const at::Tensor& right,
                         const std::optional<at::Tensor>& project_left,
                         const std::optional<at::Tensor>& project_right,
                         const at::Tensor& offsets) {
  constexpr const char* op = "sample_sketch";
  const SampleShape shape = check_samples(op, left, right, offsets);
  const at::Tensor starts = offsets.contiguous();
  const int64_t* start = starts.const_data_ptr<int64_t>();
  check_offset_values(op, shape, start);
  if (project_left) check_projection(op, "left", shape.left, left, *project_left);
  if (project_right) check_projection(op, "right", shape.right, left, *project_right);
  at::Tensor sketches = at::zeros({shape.samples, project_left ? project_left->size(0) : shape.left,
                                   project_right ? project_right->size(0) : shape.right},
                                  left.options().dtype(result_type(left)));
  if (sketches.numel() == 0 || left.numel() == 0 || right.numel() == 0) return sketches;
  dispatch(left.scalar_type(), FUDLR_TABLE(sample_sketch),
           [&](const auto& kernels, auto in, auto real) {
             using In = decltype(in);
             using Real = decltype(real);
             const Side<In, Real> left_side(kernels, left, project_left);
             const Side<In, Real> right_side(kernels, right, project_right);
             const int64_t each =
                 left_side.work() + right_side.work() + left_side.size() * right_side.size();
             const int64_t work = each * shape.positions / shape.samples;
             Real* data = sketches.mutable_data_ptr<Real>();
             const auto run = [&](const SampleOuterKernels<Real, Real>& outer) {
               at::parallel_for(0, shape.samples,
                                std::max<int64_t>(1, kThreadWork / std::max<int64_t>(work, 1)),
                                [&](int64_t begin, int64_t end) {
                                  sketch(left_side, right_side, outer, start, begin, end, data);
                                });
             };
             if constexpr (std::is_same_v<Real, double>) {
               run(FUDLR_TABLE(sample_outer).f64);
             } else {
               run(FUDLR_TABLE(sample_outer).f32);
             }
           });
  return sketches;
}

}  // namespace

TORCH_LIBRARY_IMPL(fudlr, CPU, m) { m.impl("sample_sketch", &sample_sketch); }

}  // namespace fudlr
