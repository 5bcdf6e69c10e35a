// Causal attention on the CPU: tensors, threads and registration.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/attention_kernel.h"
#include "cpu/lines.h"

namespace fudlr {
namespace {

// The arguments that all three ops begin with.
struct Attention {
  const at::Tensor &q, &k, &v, &query_offsets, &key_offsets, &limits;
  int64_t heads, key_heads;
  double scale;

  void check(const char* op) const {
    check_attention(op, q, k, v, query_offsets, key_offsets, limits, heads, key_heads);
  }
  AttentionShape shape() const {
    return {heads,
            key_heads,
            q.size(1) / heads,
            scale,
            query_offsets.const_data_ptr<int64_t>(),
            key_offsets.const_data_ptr<int64_t>(),
            limits.const_data_ptr<int64_t>()};
  }
  template <typename Real>
  AttentionInput<Real> input() const {
    return {lines<Real>(q), lines<Real>(k), lines<Real>(v)};
  }
  // Calls run(kernels, Real{}, begin, end) for parts of the tasks.
  template <typename Run>
  void run(int64_t k_vectors, Run run) const {
    const int64_t tasks = (query_offsets.size(0) - 1) * key_heads;
    const int64_t work = q.numel() * (k.size(0) / std::max<int64_t>(tasks, 1) + 1) * k_vectors;
    const int64_t grain = std::max<int64_t>(1, kThreadWork * tasks / std::max<int64_t>(work, 1));
    dispatch_real(q, FUDLR_TABLE(attention), [&](const auto& kernels, auto real) {
      at::parallel_for(0, tasks, grain,
                       [&](int64_t begin, int64_t end) { run(kernels, real, begin, end); });
    });
  }
};

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                     const at::Tensor& limits, int64_t heads, int64_t key_heads, double scale) {
  const Attention all{q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale};
  all.check("attention");
  at::Tensor out = at::empty({q.size(0), q.size(1)}, q.options());
  all.run(1, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
    using Real = decltype(real);
    kernels.forward(all.shape(), all.input<Real>(), begin, end, mutable_lines<Real>(out));
  });
  return out;
}

at::Tensor attention_tangent(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                             const at::Tensor& limits, int64_t heads, int64_t key_heads,
                             double scale, const at::Tensor& dq, const at::Tensor& dk,
                             const at::Tensor& dv, int64_t spare) {
  const char* op = "attention_tangent";
  const Attention all{q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale};
  all.check(op);
  const int64_t count = check_attention_tangents(op, q, k, dq, dk, dv);
  at::Tensor out = with_spare(op, dq.size(0), q.size(1), spare, q);
  all.run(count, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
    using Real = decltype(real);
    kernels.tangent(all.shape(), all.input<Real>(),
                    {lines<Real>(dq), lines<Real>(dk), lines<Real>(dv)}, count, begin, end,
                    mutable_lines<Real>(out));
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& query_offsets,
    const at::Tensor& key_offsets, const at::Tensor& limits, int64_t heads, int64_t key_heads,
    double scale, const at::Tensor& grads, const std::optional<at::Tensor>& delta,
    const std::optional<at::Tensor>& dq, const std::optional<at::Tensor>& dk,
    const std::optional<at::Tensor>& dv, int64_t spare) {
  const char* op = "attention_backward";
  const Attention all{q, k, v, query_offsets, key_offsets, limits, heads, key_heads, scale};
  all.check(op);
  const int64_t count = check_attention_backward(op, q, k, grads, delta, dq, dk, dv);
  auto to = attention_cotangents(op, q, k, count, spare);
  all.run(2 * count, [&](const auto& kernels, auto real, int64_t begin, int64_t end) {
    using Real = decltype(real);
    kernels.backward(
        all.shape(), all.input<Real>(), lines<Real>(grads), lines<Real>(delta),
        {lines<Real>(dq), lines<Real>(dk), lines<Real>(dv)}, count, begin, end,
        {mutable_lines<Real>(to.q), mutable_lines<Real>(to.k), mutable_lines<Real>(to.v)});
  });
  return {to.q, to.k, to.v};
}

}  // namespace

TORCH_LIBRARY_IMPL(fudlr_decoder, CPU, m) {
  m.impl("attention", &attention);
  m.impl("attention_tangent", &attention_tangent);
  m.impl("attention_backward", &attention_backward);
}

}  // namespace fudlr
