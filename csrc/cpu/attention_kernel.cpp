// P = softmax(scale Q Kᵀ), O = P V for one sample and head and a block of queries at a time, so
// that memory grows with the length of a sample and not with its square. Rows of P are whole: no
// number depends on the blocks, for the sums over queries go on where the block before stopped.
//
// With S' = scale (Q' Kᵀ + Q K'ᵀ): P' = P (S' - Σ P S'), O' = P' V + P V'. Backward, with
// D = δ Vᵀ and c = Σ D P over a row: C = scale P (D - c), and the cotangents are C K, Cᵀ Q, Pᵀ δ.
// Its derivative: D' = δ' Vᵀ + δ V'ᵀ, c' = Σ D' P + D P', C' = scale (P' (D - c) + P (D' - c')).
// Queries that see no key of a block are left out of its products: half of them, in the mean.
#include "cpu/attention_kernel.h"

#include "cpu/transpose.h"
#include "cpu/vexp.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int kTileRows = 6;                     // 12 sums, 2 columns, 1 broadcast of 16 registers
constexpr int64_t kQueryBlock = 16 * kTileRows;  // queries whose rows of P exist at one time

// c [R, columns] (+)= a [R, inner] b [inner, columns], the last columns one by one.
template <typename Real, int R>
void product_rows(Strided<Real> a, const Real* b, int64_t b_row, int64_t columns, int64_t inner,
                  Real* c, int64_t c_row, bool add) {
  constexpr int64_t w = kWidth<Real>;
  int64_t j = 0;
  for (; j + 2 * w <= columns; j += 2 * w) {
    multiply_tile<Real, R, 2>(a, inner, b + j, b_row, add, c + j, c_row);
  }
  for (; j + w <= columns; j += w) {
    multiply_tile<Real, R, 1>(a, inner, b + j, b_row, add, c + j, c_row);
  }
  for (; j < columns; ++j) {
    for (int i = 0; i < R; ++i) {
      Real sum = add ? c[i * c_row + j] : Real(0);
      for (int64_t l = 0; l < inner; ++l) {
        sum += a.data[i * a.row + l * a.column] * b[l * b_row + j];
      }
      c[i * c_row + j] = sum;
    }
  }
}

template <typename Real, int R = kTileRows>
void product(int64_t rows, Strided<Real> a, const Real* b, int64_t b_row, int64_t columns,
             int64_t inner, Real* c, int64_t c_row, bool add) {
  if (rows == R) return product_rows<Real, R>(a, b, b_row, columns, inner, c, c_row, add);
  if constexpr (R > 1) product<Real, R - 1>(rows, a, b, b_row, columns, inner, c, c_row, add);
}

// One sample and key head, one query head and a block of its queries at a time.
template <typename Real>
class Head {
 public:
  Head(const AttentionShape& shape, const AttentionInput<Real>& in, int64_t task)
      : width(shape.width), scale(static_cast<Real>(shape.scale)) {
    const int64_t sample = task / shape.key_heads;
    key_head = task % shape.key_heads;
    group = shape.heads / shape.key_heads;
    first_query = shape.query_offsets[sample];
    queries = shape.query_offsets[sample + 1] - first_query;
    first_key = shape.key_offsets[sample];
    keys = shape.key_offsets[sample + 1] - first_key;
    limits = shape.limits + first_query;
    padded = blocks(keys, kWidth<Real>) * kWidth<Real>;
    k = key_rows(in.k, 1, 0);
    v = key_rows(in.v, 1, 0);
  }

  // Calls use(head, i) for the blocks of this head's queries, the first of which is query i; once
  // where there are none, so that what keys get is set.
  template <typename Use>
  void for_blocks(Use use) const {
    for (int64_t i = 0; i == 0 || i < queries; i += kQueryBlock) {
      Head block = *this;
      block.first_query += i;
      block.queries = min(kQueryBlock, queries - i);
      block.limits += i;
      use(block, i);
    }
  }

  // Row 0 of this head's part of an array with `count` rows a position.
  template <typename Number>
  Lines<Number> key_rows(Lines<Number> lines, int64_t count, int64_t j) const {
    return {lines.at(first_key * count + j) + key_head * width, lines.stride * count};
  }
  template <typename Number>
  Lines<Number> query_rows(Lines<Number> lines, int64_t head, int64_t count, int64_t j) const {
    return {lines.at(first_query * count + j) + (key_head * group + head) * width,
            lines.stride * count};
  }

  // to [width, padded] = rows [keys, width] transposed, zero beyond the keys.
  void transpose(Lines<const Real> rows, Real* to) const {
    turn(rows.data, rows.stride, keys, width, to, padded);
    for (int64_t i = 0; keys < padded && i < width; ++i) {
      for (int64_t t = keys; t < padded; ++t) to[i * padded + t] = Real(0);
    }
  }

  // c [queries, padded] (+)= a [queries, width] bᵀ, where queries see something.
  void scores(Lines<const Real> a, const Real* transposed, Real* c, bool add) const {
    for_queries([&](int64_t i, int64_t rows, int64_t seen) {
      const int64_t columns = min(padded, blocks(seen, kWidth<Real>) * kWidth<Real>);
      product<Real>(rows, {a.data + i * a.stride, a.stride, 1}, transposed, padded, columns, width,
                    c + i * padded, padded, add);
    });
  }
  // c [queries, width] (+)= p [queries, padded] b [keys, width]
  void mix(const Real* p, Lines<const Real> b, Lines<Real> c, bool add) const {
    for_queries([&](int64_t i, int64_t rows, int64_t seen) {
      product<Real>(rows, {p + i * padded, padded, 1}, b.data, b.stride, width, seen,
                    c.data + i * c.stride, c.stride, add);
    });
  }
  // c [keys, width] (+)= pᵀ b [queries, width]
  void spread(const Real* p, Lines<const Real> b, Lines<Real> c, bool add) const {
    int64_t start = 0;
    const int64_t seen = queries > 0 ? limits[queries - 1] : 0;
    for (int64_t t = 0; t < (add ? seen : keys); t += kTileRows) {
      while (start < queries && limits[start] <= t) ++start;
      product<Real>(min(kTileRows, keys - t), {p + start * padded + t, 1, padded},
                    b.data + start * b.stride, b.stride, width, queries - start,
                    c.data + t * c.stride, c.stride, add);
    }
  }

  void softmax(Real* p) const {
    for_rows([&](int64_t i, int64_t seen) {
      Real* row = p + i * padded;
      Real largest = seen > 0 ? row[0] : Real(0);
      for (int64_t t = 1; t < seen; ++t) largest = row[t] > largest ? row[t] : largest;
      const Real shift = largest * scale;
      for_vectors(row, row, seen, [&](Vector<Real> x) { return vexp<Real>(x * scale - shift); });
      Real sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t t = 0; t < seen; ++t) sum += row[t];
      const Real share = Real(1) / sum;
#pragma omp simd
      for (int64_t t = 0; t < seen; ++t) row[t] *= share;
      for (int64_t t = seen; t < padded; ++t) row[t] = Real(0);
    });
  }

  // Calls use(query, keys it sees).
  template <typename Use>
  void for_rows(Use use) const {
    for (int64_t i = 0; i < queries; ++i) use(i, limits[i]);
  }

  int64_t width, key_head, group, first_query, queries, first_key, keys, padded;
  Real scale;
  const int64_t* limits;
  Lines<const Real> k, v;

 private:
  // Calls use(first query, how many, keys that the last of them sees).
  template <typename Use>
  void for_queries(Use use) const {
    for (int64_t i = 0; i < queries; i += kTileRows) {
      const int64_t rows = min(kTileRows, queries - i);
      use(i, rows, limits[i + rows - 1]);
    }
  }
};

// Memory for one head's matrices, one after the other.
template <typename Real>
class Workspace {
 public:
  void start(const Head<Real>& head, int64_t transposed, int64_t square) {
    rows_ = min(kQueryBlock, head.queries);
    next_ = scratch_.get((transposed * head.width + square * rows_) * head.padded);
    head_ = &head;
  }
  Real* transposed() { return take(head_->width); }
  Real* square() { return take(rows_); }

 private:
  Real* take(int64_t rows) {
    Real* result = next_;
    next_ += rows * head_->padded;
    return result;
  }
  Scratch<Real> scratch_;
  Real* next_ = nullptr;
  int64_t rows_ = 0;
  const Head<Real>* head_ = nullptr;
};

template <typename Real>
void forward(const AttentionShape& shape, const AttentionInput<Real>& in, int64_t begin,
             int64_t end, Lines<Real> out) {
  Workspace<Real> workspace;
  for (int64_t task = begin; task < end; ++task) {
    const Head<Real> head(shape, in, task);
    workspace.start(head, 1, 1);
    Real *keys = workspace.transposed(), *p = workspace.square();
    head.transpose(head.k, keys);
    for (int64_t h = 0; h < head.group; ++h) {
      head.for_blocks([&](const Head<Real>& block, int64_t) {
        block.scores(block.query_rows(in.q, h, 1, 0), keys, p, false);
        block.softmax(p);
        block.mix(p, block.v, block.query_rows(out, h, 1, 0), false);
      });
    }
  }
}

// S' in place becomes P' = P (scale S' - Σ P scale S').
template <typename Real>
void softmax_tangent(const Head<Real>& head, const Real* p, Real* ds) {
  head.for_rows([&](int64_t i, int64_t seen) {
    const Real* from = p + i * head.padded;
    Real* to = ds + i * head.padded;
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < seen; ++t) sum += from[t] * to[t];
#pragma omp simd
    for (int64_t t = 0; t < seen; ++t) to[t] = head.scale * from[t] * (to[t] - sum);
    for (int64_t t = seen; t < head.padded; ++t) to[t] = Real(0);
  });
}

template <typename Real>
void tangent(const AttentionShape& shape, const AttentionInput<Real>& in,
             const AttentionInput<Real>& tangents, int64_t k, int64_t begin, int64_t end,
             Lines<Real> out) {
  Workspace<Real> workspace;
  for (int64_t task = begin; task < end; ++task) {
    const Head<Real> head(shape, in, task);
    workspace.start(head, 2, 2);
    Real *keys = workspace.transposed(), *moved = workspace.transposed();
    Real *p = workspace.square(), *dp = workspace.square();
    head.transpose(head.k, keys);
    for (int64_t h = 0; h < head.group; ++h) {
      head.for_blocks([&](const Head<Real>& block, int64_t) {
        const auto q = block.query_rows(in.q, h, 1, 0);
        block.scores(q, keys, p, false);
        block.softmax(p);
        for (int64_t j = 0; j < k; ++j) {
          block.transpose(block.key_rows(tangents.k, k, j), moved);
          block.scores(block.query_rows(tangents.q, h, k, j), keys, dp, false);
          block.scores(q, moved, dp, true);
          softmax_tangent(block, p, dp);
          const auto to = block.query_rows(out, h, k, j);
          block.mix(dp, block.v, to, false);
          block.mix(p, block.key_rows(tangents.v, k, j), to, true);
        }
      });
    }
  }
}

// D in place becomes C' = scale (P' (D₀ - c₀) + P (D - c')); without primal D₀ and P', C.
template <typename Real>
void softmax_backward(const Head<Real>& head, const Real* p, const Real* centred,
                      const Real* primal, const Real* dp, Real* d) {
  head.for_rows([&](int64_t i, int64_t seen) {
    const int64_t at = i * head.padded;
    Real* to = d + at;
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < seen; ++t) sum += p[at + t] * to[t];
    if (dp == nullptr) {
#pragma omp simd
      for (int64_t t = 0; t < seen; ++t) to[t] = head.scale * p[at + t] * (to[t] - sum);
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t t = 0; t < seen; ++t) sum += primal[at + t] * dp[at + t];
#pragma omp simd
      for (int64_t t = 0; t < seen; ++t) {
        to[t] = head.scale * (dp[at + t] * centred[at + t] + p[at + t] * (to[t] - sum));
      }
    }
    for (int64_t t = seen; t < head.padded; ++t) to[t] = Real(0);
  });
}

// The primal backward's matrices: D, D - c, and C.
template <typename Real>
void softmax_backward_primal(const Head<Real>& head, const Real* p, Real* d, Real* centred,
                             Real* c) {
  head.for_rows([&](int64_t i, int64_t seen) {
    const int64_t at = i * head.padded;
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < seen; ++t) sum += p[at + t] * d[at + t];
#pragma omp simd
    for (int64_t t = 0; t < seen; ++t) {
      centred[at + t] = d[at + t] - sum;
      c[at + t] = head.scale * p[at + t] * centred[at + t];
    }
    for (int64_t t = seen; t < head.padded; ++t) c[at + t] = Real(0);
  });
}

template <typename Real>
void backward(const AttentionShape& shape, const AttentionInput<Real>& in, Lines<const Real> grads,
              Lines<const Real> delta, const AttentionInput<Real>& tangents, int64_t k,
              int64_t begin, int64_t end, const AttentionOutput<Real>& result) {
  const bool second = delta.data != nullptr;
  Workspace<Real> workspace;
  for (int64_t task = begin; task < end; ++task) {
    const Head<Real> head(shape, in, task);
    workspace.start(head, second ? 4 : 2, second ? 6 : 2);
    Real *keys = workspace.transposed(), *values = workspace.transposed();
    Real *p = workspace.square(), *d = workspace.square();
    Real *moved_k = nullptr, *moved_v = nullptr;
    Real *dp = nullptr, *primal = nullptr, *centred = nullptr, *c = nullptr;
    if (second) {
      moved_k = workspace.transposed(), moved_v = workspace.transposed();
      dp = workspace.square(), primal = workspace.square(), centred = workspace.square(),
      c = workspace.square();
    }
    head.transpose(head.k, keys);
    head.transpose(head.v, values);
    for (int64_t h = 0; h < head.group; ++h) {
      head.for_blocks([&](const Head<Real>& block, int64_t first) {
        const auto q = block.query_rows(in.q, h, 1, 0);
        const bool add = h > 0 || first > 0;
        block.scores(q, keys, p, false);
        block.softmax(p);
        const auto at_output = second ? block.query_rows(delta, h, 1, 0) : Lines<const Real>{};
        if (second) {
          block.scores(at_output, values, primal, false);
          softmax_backward_primal(block, p, primal, centred, c);
        }
        for (int64_t j = 0; j < k; ++j) {
          const auto grad = block.query_rows(grads, h, k, j);
          const auto to_q = block.query_rows(result.q, h, k, j);
          const auto to_k = block.key_rows(result.k, k, j), to_v = block.key_rows(result.v, k, j);
          block.scores(grad, values, d, false);
          block.spread(p, grad, to_v, add);
          if (second) {
            const auto dq = block.query_rows(tangents.q, h, k, j);
            const auto dk = block.key_rows(tangents.k, k, j);
            block.transpose(dk, moved_k);
            block.transpose(block.key_rows(tangents.v, k, j), moved_v);
            block.scores(dq, keys, dp, false);
            block.scores(q, moved_k, dp, true);
            softmax_tangent(block, p, dp);
            block.scores(at_output, moved_v, d, true);
            block.spread(dp, at_output, to_v, true);
            softmax_backward(block, p, centred, primal, dp, d);
            block.mix(c, dk, to_q, false);
            block.spread(c, dq, to_k, add);
          } else {
            softmax_backward<Real>(block, p, nullptr, nullptr, nullptr, d);
          }
          block.mix(d, block.k, to_q, second);
          block.spread(d, q, to_k, add || second);
        }
      });
    }
  }
}

template <typename Real>
constexpr AttentionKernels<Real> kernels() {
  return {forward<Real>, tangent<Real>, backward<Real>};
}

}  // namespace

const AttentionTable attention = {kernels<float>(), kernels<double>()};

}  // namespace fudlr::FUDLR_ISA
