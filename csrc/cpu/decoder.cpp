// The decoder's ops on the CPU: which kernels run, and what each thread takes.
#include <algorithm>

#include "abi/parallel.h"
#include "cpu/attention_kernel.h"
#include "cpu/choose.h"
#include "cpu/decoder_kernel.h"
#include "decoder_ops.h"

namespace fudlr {
namespace {

template <typename Real>
Lines<const Real> lines(const Tensor& rows) {
  return {rows.const_data_ptr<Real>(), rows.stride(0)};
}
template <typename Real>
Lines<const Real> lines(const OptionalTensor& rows) {
  return rows ? lines<Real>(*rows) : Lines<const Real>{nullptr, 0};
}
template <typename Real>
Lines<Real> mutable_lines(const Tensor& rows) {
  return {rows.mutable_data_ptr<Real>(), rows.stride(0)};
}
template <typename Real>
NormInput<Real> norm_input(const NormArguments& norm) {
  return {lines<Real>(norm.x), norm.weight.const_data_ptr<Real>(),
          norm.scale.const_data_ptr<Sum<Real>>(), norm.x.size(1)};
}
template <typename Real>
AttentionInput<Real> attention_input(const AttentionArguments& all) {
  return {lines<Real>(all.q), lines<Real>(all.k), lines<Real>(all.v)};
}
AttentionShape attention_shape(const AttentionArguments& all) {
  return {all.heads,
          all.key_heads,
          all.q.size(1) / all.heads,
          all.scale,
          all.query_offsets.const_data_ptr<int64_t>(),
          all.key_offsets.const_data_ptr<int64_t>(),
          all.limits.const_data_ptr<int64_t>()};
}

class OnCpu {
 public:
  OnCpu(const char*, const Tensor& like) : like_(like) {}

  void rms_norm(const NormArguments& norm, const OptionalTensor& added, double eps,
                const Tensor& sum, const Tensor& y) const {
    for_positions(norm.x, 1, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      const NormInput<Real> in = norm_input<Real>(norm);
      kernels.norm(in.x, lines<Real>(added), in.weight, eps, in.width, begin, end,
                   added ? mutable_lines<Real>(sum) : Lines<Real>{nullptr, 0},
                   mutable_lines<Real>(y), norm.scale.mutable_data_ptr<Sum<Real>>());
    });
  }
  void rms_norm_tangent(const NormArguments& norm, const Tensor& dx, int64_t k,
                        const Tensor& dy) const {
    for_positions(norm.x, k, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.norm_tangent(norm_input<Real>(norm), lines<Real>(dx), k, begin, end,
                           mutable_lines<Real>(dy));
    });
  }
  void rms_norm_backward(const NormArguments& norm, const Tensor& grads,
                         const OptionalTensor& added, const OptionalTensor& delta,
                         const OptionalTensor& dx, int64_t k, const Tensor& result) const {
    for_positions(norm.x, k, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.norm_backward(norm_input<Real>(norm), lines<Real>(grads), lines<Real>(added),
                            lines<Real>(delta), lines<Real>(dx), k, begin, end,
                            mutable_lines<Real>(result));
    });
  }
  void swiglu(const Tensor& gu, int64_t width, const Tensor& a) const {
    for_positions(gu, 4, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.swiglu(lines<Real>(gu), width, begin, end, mutable_lines<Real>(a));
    });
  }
  void swiglu_tangent(const Tensor& gu, const Tensor& dgu, int64_t width, int64_t k,
                      const Tensor& da) const {
    for_positions(gu, 4 + k / 2, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.swiglu_tangent(lines<Real>(gu), lines<Real>(dgu), width, k, begin, end,
                             mutable_lines<Real>(da));
    });
  }
  void swiglu_backward(const Tensor& gu, const Tensor& grads, const OptionalTensor& delta,
                       const OptionalTensor& dgu, int64_t width, int64_t k,
                       const Tensor& result) const {
    for_positions(gu, 4 + k, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.swiglu_backward(lines<Real>(gu), lines<Real>(grads), lines<Real>(delta),
                              lines<Real>(dgu), width, k, begin, end, mutable_lines<Real>(result));
    });
  }
  void rotate_heads(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads,
                    bool inverse, int64_t k) const {
    for_positions(cos, heads * k, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.rotate(mutable_lines<Real>(x), lines<Real>(cos), lines<Real>(sin), heads, cos.size(1),
                     inverse, k, begin, end);
    });
  }

  void attention(const AttentionArguments& all, const Tensor& out) const {
    for_heads(all, 1, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.forward(attention_shape(all), attention_input<Real>(all), begin, end,
                      mutable_lines<Real>(out));
    });
  }
  void attention_tangent(const AttentionArguments& all, const Tensor& dq, const Tensor& dk,
                         const Tensor& dv, int64_t count, const Tensor& out) const {
    for_heads(all, count, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.tangent(attention_shape(all), attention_input<Real>(all),
                      {lines<Real>(dq), lines<Real>(dk), lines<Real>(dv)}, count, begin, end,
                      mutable_lines<Real>(out));
    });
  }
  void attention_backward(const AttentionArguments& all, const Tensor& grads,
                          const OptionalTensor& delta, const OptionalTensor& dq,
                          const OptionalTensor& dk, const OptionalTensor& dv, int64_t count,
                          const AttentionCotangents& to) const {
    for_heads(all, 2 * count, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
      using Real = decltype(real);
      kernels.backward(
          attention_shape(all), attention_input<Real>(all), lines<Real>(grads), lines<Real>(delta),
          {lines<Real>(dq), lines<Real>(dk), lines<Real>(dv)}, count, begin, end,
          {mutable_lines<Real>(to.q), mutable_lines<Real>(to.k), mutable_lines<Real>(to.v)});
    });
  }

 private:
  // Calls run(kernels, Real{}, begin, end) for parts of `units`, each of which is `work` steps.
  template <typename Table, typename Table16, typename Run>
  void share(const Table& table, const Table16& table16, int64_t units, int64_t work,
             Run run) const {
    const auto with = [&](const auto& kernels, auto real) {
      const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(work, 1));
      parallel_for(0, units, grain,
                   [&](int64_t begin, int64_t end) { run(kernels, real, begin, end); });
    };
    if (like_.scalar_type() == kDouble) return with(table.f64, double{});
    if (like_.scalar_type() == kBFloat16) return with(table16, Bfloat16{});
    FUDLR_CHECK_VALUE(like_.scalar_type() == kFloat, "fudlr_ext has no CPU kernel for ",
                      like_.scalar_type());
    with(table.f32, float{});
  }
  // Parts of the positions of `rows`, each number of which costs `steps`.
  template <typename Run>
  void for_positions(const Tensor& rows, int64_t steps, Run run) const {
    share(FUDLR_TABLE(decoder), FUDLR_TABLE(decoder_bf16), rows.size(0), rows.size(1) * steps, run);
  }
  // Parts of the samples' key heads, with so many vectors.
  template <typename Run>
  void for_heads(const AttentionArguments& all, int64_t vectors, Run run) const {
    const int64_t tasks = (all.query_offsets.size(0) - 1) * all.key_heads;
    const int64_t each = std::max<int64_t>(tasks, 1);
    const int64_t work = all.q.numel() * (all.k.size(0) / each + 1) * vectors;
    share(FUDLR_TABLE(attention), FUDLR_TABLE(attention_bf16), tasks, work / each, run);
  }

  const Tensor& like_;
};

}  // namespace

FUDLR_LIBRARY_IMPL(fudlr_decoder, CPU, m) { DecoderOps<OnCpu>::register_with(m); }

}  // namespace fudlr
