// The signature of every op, on one screen. Public functions and their docstrings: fudlr_ext/ops/.
//
// The sample ops work on the gradient of a matrix W [a, b] used as y = x Wᵀ by samples of unequal
// length: sample i's gradient is G_i = Σ_t left_t right_tᵀ over its positions t, offsets[i] to
// offsets[i+1]. For LoRA's A, left is scaling·Bᵀδ and right is x; for B, left is δ and right is
// scaling·A x.
#include "abi/library.h"

FUDLR_LIBRARY(fudlr, m) {
  // G [n, a, b]
  m.def("sample_grads(Tensor left, Tensor right, Tensor offsets) -> Tensor");
  // <G_i, V_j> [n, k] for vectors [k, a, b], the gradients never stored
  m.def("sample_dots(Tensor left, Tensor right, Tensor vectors, Tensor offsets) -> Tensor");
  // sum_i weights[w, i] G_i [w, a, b]
  m.def("grad_sum(Tensor left, Tensor right, Tensor weights, Tensor offsets) -> Tensor");

  // Products with stored rows G [n, p]: floating-point numbers, or int8 with scales
  // [n, ceil(p / 128)], one for each row and run of 128 columns.
  // G Vᵀ [n, k] for vectors [k, p]
  m.def("row_dots(Tensor rows, Tensor vectors, Tensor? scales=None) -> Tensor");
  // W G [w, p] in float64 for weights [w, n]
  m.def("row_sums(Tensor rows, Tensor weights, Tensor? scales=None) -> Tensor");
  // G Vᵀ [n, k], and V Gᵀ diag(w) G [k, p] in float64 for weights [n] or ones; rows read once
  m.def(
      "row_gram(Tensor rows, Tensor vectors, Tensor? weights=None, Tensor? scales=None) -> (Tensor "
      "dots, Tensor sums)");

  // A softmax over a catalogue: p_i = softmax(scale · h_i Eᵀ) of users h [n, w] over items E [M, w]
  // but those that user i has seen, seen_items[seen_offsets[i] : seen_offsets[i + 1]].
  // p C [n, c] for values C [M, c], and log Σ exp of the scores [n]
  m.def(
      "catalogue_mean(Tensor users, Tensor items, Tensor values, float scale=1, "
      "Tensor? seen_offsets=None, Tensor? seen_items=None) -> (Tensor mean, Tensor lse)");
  // pᵀ W [M, g] for weights [n, g]
  m.def(
      "catalogue_share(Tensor users, Tensor items, Tensor weights, float scale=1, "
      "Tensor? seen_offsets=None, Tensor? seen_items=None) -> Tensor");
  // the k highest of h Eᵀ and their items, [n, k]
  m.def(
      "catalogue_top(Tensor users, Tensor items, int k, Tensor? seen_offsets=None, "
      "Tensor? seen_items=None) -> (Tensor scores, Tensor top)");
}

// The backward pass of an op above; without an autograd rule of its own.
FUDLR_LIBRARY(fudlr_grad, m) {
  // in users, items and values, empty where not needed: of Σ_im ∂s_im s_im with
  // ∂s_im = p_im (weights_i · C_m − shift_i)
  m.def(
      "catalogue_mean_backward(Tensor users, Tensor items, Tensor values, float scale, "
      "Tensor? seen_offsets, Tensor? seen_items, Tensor lse, Tensor weights, Tensor shift, "
      "bool need_users, bool need_items, bool need_values) -> (Tensor, Tensor, Tensor)");
}

// Ops for the engine's own passes. That they have no derivatives is registered in Python
// (fudlr_ext/ops/_decoder.py).
FUDLR_LIBRARY(fudlr_decoder, m) {
  // A transformer's decoder layers, position by position; tangents and cotangents have k rows a
  // position. Given a primal cotangent `delta` and tangents, a backward returns its derivative
  // along them. `spare`: columns left free to the right of every row of the result, for a product
  // that follows. y, (mean (x + added)² + eps)^(-1/2), x + added
  m.def("rms_norm(Tensor x, Tensor? added, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rms_norm_tangent(Tensor x, Tensor weight, Tensor scale, Tensor dx, int spare=0) -> "
      "Tensor");
  m.def(
      "rms_norm_backward(Tensor x, Tensor weight, Tensor scale, Tensor grads, Tensor? added=None, "
      "Tensor? delta=None, Tensor? dx=None, int spare=0) -> Tensor");
  // silu(g) u of rows [g | u]
  m.def("swiglu(Tensor gu) -> Tensor");
  m.def("swiglu_tangent(Tensor gu, Tensor dgu, int spare=0) -> Tensor");
  m.def(
      "swiglu_backward(Tensor gu, Tensor grads, Tensor? delta=None, Tensor? dgu=None, "
      "int spare=0) -> Tensor");
  // rotary embedding of every head in place, or its transpose
  m.def("rotate_heads(Tensor(a!) x, Tensor cos, Tensor sin, bool inverse) -> ()");
  // causal, grouped queries, samples of unequal length; limits: the keys that each query sees
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, "
      "Tensor limits, int heads, int key_heads, float scale) -> Tensor");
  m.def(
      "attention_tangent(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, "
      "Tensor limits, int heads, int key_heads, float scale, Tensor dq, Tensor dk, Tensor dv, "
      "int spare=0) -> Tensor");
  m.def(
      "attention_backward(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, "
      "Tensor limits, int heads, int key_heads, float scale, Tensor grads, Tensor? delta=None, "
      "Tensor? dq=None, Tensor? dk=None, Tensor? dv=None, "
      "int spare=0) -> (Tensor, Tensor, Tensor)");
}

// Ops of a recording, without an autograd rule.
FUDLR_LIBRARY(fudlr_record, m) {
  // rows [n, p] += P G_i or G_i Pᵀ of several matrices, left [T, a] and right [T, b] each, or more
  // dimensions than T; table [m, 4]: where a matrix's P [q, a or b] lies in directions, q, whether
  // P is of the left factor, and the column that its sketch begins at. No offsets: samples of even
  // length
  m.def(
      "add_sketches(Tensor(a!) rows, Tensor[] left, Tensor[] right, Tensor? offsets, "
      "Tensor directions, Tensor table) -> ()");
  // int8 codes [n, p], and scales [n, ceil(p / 128)]
  m.def("encode_rows(Tensor rows) -> (Tensor codes, Tensor scales)");
}

// Ops without an autograd rule, for the training that fudlr unrolls; fudlr_ext/reference/unroll.py.
FUDLR_LIBRARY(fudlr_unroll, m) {
  // A step of Adam on [d], or on [k, d] each, its derivative and the transpose of that on changes
  // [k, d]; options [10] are its rate, betas, eps, both corrections, l2, clip, coupled decay, and
  // what AdamW keeps. mean and square are those before the step in the first, those after it in the
  // others
  m.def(
      "adam_move(Tensor theta, Tensor mean, Tensor square, Tensor gradient, Tensor start, "
      "Tensor options) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adam_tangent(Tensor d_theta, Tensor d_mean, Tensor d_square, Tensor change, Tensor theta, "
      "Tensor mean, Tensor square, Tensor gradient, Tensor start, Tensor options) -> (Tensor, "
      "Tensor, Tensor)");
  m.def(
      "adam_transposed(Tensor d_theta, Tensor d_mean, Tensor d_square, Tensor theta, Tensor mean, "
      "Tensor square, Tensor gradient, Tensor start, Tensor options) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  // S v [k, p] and Sᵀ s [k, d]; table [m, 7]: where a matrix lies in v, its rows and columns, where
  // its directions lie in factors, how many they are, where its sketch lies, and whether it is a B
  m.def("lora_project(Tensor vectors, Tensor factors, Tensor table, int p) -> Tensor");
  m.def("lora_lift(Tensor sketches, Tensor factors, Tensor table, int d) -> Tensor");
  // Shifts [k, d] with what b a adds to them, and (bᵀ Ĝ, Ĝ aᵀ) [k, d] for the Ĝ whose views are
  // `total` [d], or for one each [k, d]; layers [L, 5]: where A and B lie in θ [d], rank, in and
  // out; their inverses [r, r] one by one
  m.def(
      "lora_seen(Tensor shifts, Tensor theta, Tensor inverse_a, Tensor inverse_b, Tensor layers) "
      "-> "
      "Tensor");
  m.def(
      "lora_views(Tensor total, Tensor shifts, Tensor theta, Tensor inverse_a, Tensor inverse_b, "
      "Tensor layers) -> Tensor");
}
