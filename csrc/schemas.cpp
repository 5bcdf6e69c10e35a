// The signature of every op, on one screen. Public functions and their docstrings: fudlr_ext/ops/.
//
// All of them work on the gradient of a matrix W [a, b] used as y = x Wᵀ by samples of unequal
// length: sample i's gradient is G_i = Σ_t left_t right_tᵀ over its positions t, offsets[i] to
// offsets[i+1]. For LoRA's A, left is scaling·Bᵀδ and right is x; for B, left is δ and right is
// scaling·A x.
#include <torch/library.h>

TORCH_LIBRARY(fudlr, m) {
  // G [n, a, b]
  m.def("sample_grads(Tensor left, Tensor right, Tensor offsets) -> Tensor");
  // <G_i, V_j> [n, k] for vectors [k, a, b], the gradients never stored
  m.def("sample_dots(Tensor left, Tensor right, Tensor offsets, Tensor vectors) -> Tensor");
  // sum_i weights[w, i] G_i [w, a, b]
  m.def("grad_sum(Tensor left, Tensor right, Tensor offsets, Tensor weights) -> Tensor");
  // (P_l) G (P_r)ᵀ [n, q|a, r|b], the projections [q, a] and [r, b] applied to the factors
  m.def(
      "sample_sketch(Tensor left, Tensor right, Tensor offsets, Tensor? project_left, "
      "Tensor? project_right) -> Tensor");
}
