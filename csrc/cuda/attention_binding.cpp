// Attention and its derivatives on a GPU: tensors, scratch memory and registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cuda/attention.h"
#include "cuda/device.h"

namespace fudlr {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

gpu::Lines rows_for(const OptionalTensor& rows) {
  return rows ? gpu::Lines{rows->const_data_ptr(), rows->stride(0)} : gpu::Lines{};
}

// The arguments that all three ops begin with, checked; the kernels' look at offsets and limits is
// under way.
class Attention {
 public:
  Attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
            const at::Tensor& query_offsets, const at::Tensor& key_offsets,
            const at::Tensor& limits, int64_t heads, int64_t key_heads, double scale)
      : op_(op), device_(q) {
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
    bad_ = at::zeros({1}, limits.options().dtype(at::kInt));
    view_ = {number_of(q),
             {rows_for(q), rows_for(k), rows_for(v)},
             query_offsets.const_data_ptr<int64_t>(),
             key_offsets.const_data_ptr<int64_t>(),
             limits.const_data_ptr<int64_t>(),
             bad_.const_data_ptr<int>(),
             query_offsets.size(0) - 1,
             q.size(0),
             k.size(0),
             heads,
             key_heads,
             q.size(1) / heads,
             scale};
    check_launch(op, gpu::check_attention(view_, bad_.mutable_data_ptr<int>(), device_.stream()));
  }

  void output(const at::Tensor& out) const {
    if (out.numel() == 0) return;
    check_launch(op_, gpu::attention(view_, out_rows(out), device_.stream()));
  }
  // Room for what sums() leaves to part(), for k rows a position.
  at::Tensor room_for_sums(const at::Tensor& like, int64_t k) const {
    const bool wide = like.scalar_type() == at::kDouble;
    return at::empty({4 * view_.queries * k * view_.heads},
                     like.options().dtype(wide ? at::kDouble : at::kFloat));
  }
  void sums(const gpu::AttentionAlong& along) const {
    if (view_.queries * view_.width == 0) return;
    check_launch(op_, gpu::attention_sums(view_, along, device_.stream()));
  }
  void part(const gpu::AttentionAlong& along, gpu::AttentionPart part,
            const at::Tensor& out) const {
    if (out.numel() == 0) return;
    check_launch(op_, gpu::attention_part(view_, along, part, out_rows(out), device_.stream()));
  }

 private:
  static gpu::OutLines out_rows(const at::Tensor& rows) {
    return {rows.mutable_data_ptr(), rows.stride(0)};
  }

  const char* op_;
  OnDevice device_;
  at::Tensor bad_;
  gpu::Attention view_;
};

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                     const at::Tensor& limits, int64_t heads, int64_t key_heads, double scale) {
  const Attention all("attention", q, k, v, query_offsets, key_offsets, limits, heads, key_heads,
                      scale);
  at::Tensor out = at::empty({q.size(0), q.size(1)}, q.options());
  all.output(out);
  return out;
}

at::Tensor attention_tangent(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                             const at::Tensor& limits, int64_t heads, int64_t key_heads,
                             double scale, const at::Tensor& dq, const at::Tensor& dk,
                             const at::Tensor& dv, int64_t spare) {
  constexpr const char* op = "attention_tangent";
  const Attention all(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale);
  const int64_t count = check_attention_tangents(op, q, k, dq, dk, dv);
  at::Tensor out = with_spare(op, dq.size(0), q.size(1), spare, q);
  const at::Tensor sums = all.room_for_sums(q, count);
  const gpu::AttentionAlong along{
      count, {}, {}, {rows_for(dq), rows_for(dk), rows_for(dv)}, sums.mutable_data_ptr()};
  all.sums(along);
  all.part(along, gpu::AttentionPart::output, out);
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& query_offsets,
    const at::Tensor& key_offsets, const at::Tensor& limits, int64_t heads, int64_t key_heads,
    double scale, const at::Tensor& grads, const OptionalTensor& delta, const OptionalTensor& dq,
    const OptionalTensor& dk, const OptionalTensor& dv, int64_t spare) {
  constexpr const char* op = "attention_backward";
  const Attention all(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale);
  const int64_t count = check_attention_backward(op, q, k, grads, delta, dq, dk, dv);
  const auto to = attention_cotangents(op, q, k, count, spare);
  const at::Tensor sums = all.room_for_sums(q, count);
  const gpu::AttentionAlong along{count,
                                  rows_for(grads),
                                  rows_for(delta),
                                  {rows_for(dq), rows_for(dk), rows_for(dv)},
                                  sums.mutable_data_ptr()};
  all.sums(along);
  all.part(along, gpu::AttentionPart::queries, to.q);
  all.part(along, gpu::AttentionPart::keys, to.k);
  all.part(along, gpu::AttentionPart::values, to.v);
  return {to.q, to.k, to.v};
}

}  // namespace

FUDLR_GPU_LIBRARY(fudlr_decoder, m) {
  m.impl("attention", &attention);
  m.impl("attention_tangent", &attention_tangent);
  m.impl("attention_backward", &attention_backward);
}

}  // namespace fudlr
