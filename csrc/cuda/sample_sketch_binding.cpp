// sample_sketch on a GPU: S_i = Σ_t (P_l left_t)(P_r right_t)ᵀ. The projections of all positions
// are dense products, torch's own (cuBLAS); the outer products of what they make are sample_grads'.
//
// Must move: T (a + b) inputs once, T (q + r) projected numbers out and in, the sketches once;
// 2 T (q a + r b) + 2 T q r operations. Projections are float32, so 16-bit factors are widened
// first, which costs another T (a + b) numbers of memory while it lasts.
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "cuda/oriented.h"

namespace fudlr {
namespace {

at::Tensor projected(const at::Tensor& rows, const std::optional<at::Tensor>& projection,
                     at::ScalarType type) {
  const at::Tensor wide = rows.to(type);
  return projection ? at::mm(wide, projection->t()) : wide;
}

at::Tensor sample_sketch(const at::Tensor& left, const at::Tensor& right,
                         const std::optional<at::Tensor>& project_left,
                         const std::optional<at::Tensor>& project_right,
                         const at::Tensor& offsets) {
  constexpr const char* op = "sample_sketch";
  const SampleShape given = check_samples(op, left, right, offsets);
  if (project_left) check_projection(op, "left", given.left, left, *project_left);
  if (project_right) check_projection(op, "right", given.right, left, *project_right);
  const OnDevice device(left);
  const at::ScalarType type =
      project_left || project_right ? result_type(left) : left.scalar_type();
  const at::Tensor short_left = projected(left, project_left, type);
  const at::Tensor short_right = projected(right, project_right, type);
  const SampleShape shape{given.samples, given.positions, short_left.size(1), short_right.size(1)};
  at::Tensor sketches =
      at::empty({shape.samples, shape.left, shape.right}, left.options().dtype(result_type(left)));
  if (sketches.numel() == 0) return sketches;
  const Oriented oriented(op, shape, short_left, short_right, offsets, device.stream());
  check_launch(op,
               gpu::sample_grads(oriented.samples(), oriented.stack(sketches), device.stream()));
  return sketches;
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr, m) { m.impl("sample_sketch", &sample_sketch); }

}  // namespace fudlr
