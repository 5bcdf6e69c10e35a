// The decoder's ops on a GPU: tensors as the launchers take them, and scratch memory.
#include "cuda/attention.h"
#include "cuda/decoder.h"
#include "cuda/device.h"
#include "decoder_ops.h"

namespace fudlr {
namespace {

gpu::Lines lines(const OptionalTensor& rows) {
  return rows ? gpu::Lines{rows->const_data_ptr(), rows->stride(0)} : gpu::Lines{};
}
gpu::OutLines out_lines(const Tensor& rows) { return {rows.mutable_data_ptr(), rows.stride(0)}; }
gpu::Norm norm_of(const NormArguments& norm) {
  return {number_of(norm.x),           lines(norm.x),  norm.weight.const_data_ptr(),
          norm.scale.const_data_ptr(), norm.x.size(0), norm.x.size(1)};
}
gpu::Gated gated(const Tensor& gu) {
  return {number_of(gu), lines(gu), gu.size(0), gu.size(1) / 2};
}

class OnGpu {
 public:
  OnGpu(const char* op, const Tensor& like) : op_(op), device_(like) {}

  void rms_norm(const NormArguments& norm, const OptionalTensor& added, double eps,
                const Tensor& sum, const Tensor& y) const {
    check(gpu::rms_norm(norm_of(norm), lines(added), eps, added ? out_lines(sum) : gpu::OutLines{},
                        out_lines(y), norm.scale.mutable_data_ptr(), device_.stream()));
  }
  void rms_norm_tangent(const NormArguments& norm, const Tensor& dx, int64_t k,
                        const Tensor& dy) const {
    check(gpu::rms_norm_tangent(norm_of(norm), lines(dx), k, out_lines(dy), device_.stream()));
  }
  void rms_norm_backward(const NormArguments& norm, const Tensor& grads,
                         const OptionalTensor& added, const OptionalTensor& delta,
                         const OptionalTensor& dx, int64_t k, const Tensor& result) const {
    check(gpu::rms_norm_backward(norm_of(norm), lines(grads), lines(added), lines(delta), lines(dx),
                                 k, out_lines(result), device_.stream()));
  }
  void swiglu(const Tensor& gu, int64_t, const Tensor& a) const {
    check(gpu::swiglu(gated(gu), out_lines(a), device_.stream()));
  }
  void swiglu_tangent(const Tensor& gu, const Tensor& dgu, int64_t, int64_t k,
                      const Tensor& da) const {
    check(gpu::swiglu_tangent(gated(gu), lines(dgu), k, out_lines(da), device_.stream()));
  }
  void swiglu_backward(const Tensor& gu, const Tensor& grads, const OptionalTensor& delta,
                       const OptionalTensor& dgu, int64_t, int64_t k, const Tensor& result) const {
    check(gpu::swiglu_backward(gated(gu), lines(grads), lines(delta), lines(dgu), k,
                               out_lines(result), device_.stream()));
  }
  void rotate_heads(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads,
                    bool inverse, int64_t k) const {
    check(gpu::rotate_heads(number_of(x), out_lines(x), lines(cos), lines(sin), cos.size(0), heads,
                            cos.size(1), inverse, k, device_.stream()));
  }

  void attention(const AttentionArguments& all, const Tensor& out) const {
    Tensor bad;
    const gpu::Attention view = looked_at(all, bad);
    if (out.numel() > 0) check(gpu::attention(view, out_lines(out), device_.stream()));
  }
  void attention_tangent(const AttentionArguments& all, const Tensor& dq, const Tensor& dk,
                         const Tensor& dv, int64_t count, const Tensor& out) const {
    along(all, {count, {}, {}, {lines(dq), lines(dk), lines(dv)}, nullptr},
          {{gpu::AttentionPart::output, out}});
  }
  void attention_backward(const AttentionArguments& all, const Tensor& grads,
                          const OptionalTensor& delta, const OptionalTensor& dq,
                          const OptionalTensor& dk, const OptionalTensor& dv, int64_t count,
                          const AttentionCotangents& to) const {
    along(all, {count, lines(grads), lines(delta), {lines(dq), lines(dk), lines(dv)}, nullptr},
          {{gpu::AttentionPart::queries, to.q},
           {gpu::AttentionPart::keys, to.k},
           {gpu::AttentionPart::values, to.v}});
  }

 private:
  void check(const char* error) const { check_launch(op_, error); }

  // The arguments as launchers take them; the kernels' look at offsets and limits is under way.
  gpu::Attention looked_at(const AttentionArguments& all, Tensor& bad) const {
    bad = zeros({1}, all.limits, kInt);
    const gpu::Attention view{number_of(all.q),
                              {lines(all.q), lines(all.k), lines(all.v)},
                              all.query_offsets.const_data_ptr<int64_t>(),
                              all.key_offsets.const_data_ptr<int64_t>(),
                              all.limits.const_data_ptr<int64_t>(),
                              bad.const_data_ptr<int>(),
                              all.query_offsets.size(0) - 1,
                              all.q.size(0),
                              all.k.size(0),
                              all.heads,
                              all.key_heads,
                              all.q.size(1) / all.heads,
                              all.scale};
    check(gpu::check_attention(view, bad.mutable_data_ptr<int>(), device_.stream()));
    return view;
  }

  // A derivative: the sums of every query, and the parts that are made of them.
  void along(const AttentionArguments& all, gpu::AttentionAlong along,
             std::initializer_list<std::pair<gpu::AttentionPart, Tensor>> parts) const {
    Tensor bad;
    const gpu::Attention view = looked_at(all, bad);
    const Tensor sums = empty({4 * view.queries * along.k * view.heads}, all.q, result_type(all.q));
    along.sums = sums.mutable_data_ptr();
    if (view.queries * view.width > 0) check(gpu::attention_sums(view, along, device_.stream()));
    for (const auto& [part, out] : parts) {
      if (out.numel() == 0) continue;
      check(gpu::attention_part(view, along, part, out_lines(out), device_.stream()));
    }
  }

  const char* op_;
  OnDevice device_;
};

}  // namespace

FUDLR_GPU_LIBRARY(fudlr_decoder, m) { DecoderOps<OnGpu>::register_with(m); }

}  // namespace fudlr
