// P = softmax(scale Q Kᵀ), O = P V for one sample and head at a time, all of it in cache.
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

constexpr int kTileRows = 6;  // 12 sums, 2 columns, 1 broadcast of 16 registers

// A matrix whose element (i, j) is data[i * row + j * column].
template <typename Real>
struct Strided {
  const Real* data;
  int64_t row, column;

  Strided from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

template <typename Real, int R, int C>
inline void product_tile(Strided<Real> a, const Real* b, int64_t b_row, int64_t inner, Real* c,
                         int64_t c_row, bool add) {
  Vector<Real> sum[R][C];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) {
      sum[i][j] = add ? load(c + i * c_row + j * kWidth<Real>) : Vector<Real>{};
    }
  }
  for (int64_t l = 0; l < inner; ++l) {
    Vector<Real> columns[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) columns[j] = load(b + j * kWidth<Real>);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vector<Real> row = a.data[i * a.row] - Vector<Real>{};
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) sum[i][j] += row * columns[j];
    }
    a.data += a.column;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) store(c + i * c_row + j * kWidth<Real>, sum[i][j]);
  }
}

// c [R, columns] (+)= a [R, inner] b [inner, columns], the last columns one by one.
template <typename Real, int R>
void product_rows(Strided<Real> a, const Real* b, int64_t b_row, int64_t columns, int64_t inner,
                  Real* c, int64_t c_row, bool add) {
  constexpr int64_t w = kWidth<Real>;
  int64_t j = 0;
  for (; j + 2 * w <= columns; j += 2 * w) {
    product_tile<Real, R, 2>(a, b + j, b_row, inner, c + j, c_row, add);
  }
  for (; j + w <= columns; j += w) {
    product_tile<Real, R, 1>(a, b + j, b_row, inner, c + j, c_row, add);
  }
  for (; j < columns; ++j) {
    for (int i = 0; i < R; ++i) {
      Real sum = add ? c[i * c_row + j] : Real(0);
      for (int64_t l = 0; l < inner; ++l)
        sum += a.data[i * a.row + l * a.column] * b[l * b_row + j];
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

// One sample and key head, and one query head at a time.
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
    transposed(rows, keys, width, to, padded);
  }

  // c [queries, padded] (+)= a [queries, width] bᵀ, where queries see something.
  void scores(Lines<const Real> a, const Real* transposed, Real* c, bool add) const {
    for_queries([&](int64_t i, int64_t rows, int64_t seen) {
      const int64_t columns = least(padded, blocks(seen, kWidth<Real>) * kWidth<Real>);
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
    for (int64_t t = 0; t < keys; t += kTileRows) {
      while (start < queries && limits[start] <= t) ++start;
      product<Real>(least(kTileRows, keys - t), {p + start * padded + t, 1, padded},
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
      const int64_t rows = least(kTileRows, queries - i);
      use(i, rows, limits[i + rows - 1]);
    }
  }
};

// Memory for one head's matrices, one after the other.
template <typename Real>
class Board {
 public:
  void start(const Head<Real>& head, int64_t transposed, int64_t square) {
    next_ = scratch_.get((transposed * head.width + square * head.queries) * head.padded);
    head_ = &head;
  }
  Real* transposed() { return take(head_->width); }
  Real* square() { return take(head_->queries); }

 private:
  Real* take(int64_t rows) {
    Real* result = next_;
    next_ += rows * head_->padded;
    return result;
  }
  Scratch<Real> scratch_;
  Real* next_ = nullptr;
  const Head<Real>* head_ = nullptr;
};

template <typename Real>
void forward(const AttentionShape& shape, const AttentionInput<Real>& in, int64_t begin,
             int64_t end, Lines<Real> out) {
  Board<Real> board;
  for (int64_t task = begin; task < end; ++task) {
    const Head<Real> head(shape, in, task);
    board.start(head, 1, 1);
    Real *keys = board.transposed(), *p = board.square();
    head.transpose(head.k, keys);
    for (int64_t h = 0; h < head.group; ++h) {
      head.scores(head.query_rows(in.q, h, 1, 0), keys, p, false);
      head.softmax(p);
      head.mix(p, head.v, head.query_rows(out, h, 1, 0), false);
    }
  }
}

// S' in place becomes P' = P (scale S' - Σ P scale S').
template <typename Real>
void bend(const Head<Real>& head, const Real* p, Real* ds) {
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
  Board<Real> board;
  for (int64_t task = begin; task < end; ++task) {
    const Head<Real> head(shape, in, task);
    board.start(head, 2, 2);
    Real *keys = board.transposed(), *moved = board.transposed();
    Real *p = board.square(), *dp = board.square();
    head.transpose(head.k, keys);
    for (int64_t h = 0; h < head.group; ++h) {
      const auto q = head.query_rows(in.q, h, 1, 0);
      head.scores(q, keys, p, false);
      head.softmax(p);
      for (int64_t j = 0; j < k; ++j) {
        head.transpose(head.key_rows(tangents.k, k, j), moved);
        head.scores(head.query_rows(tangents.q, h, k, j), keys, dp, false);
        head.scores(q, moved, dp, true);
        bend(head, p, dp);
        const auto to = head.query_rows(out, h, k, j);
        head.mix(dp, head.v, to, false);
        head.mix(p, head.key_rows(tangents.v, k, j), to, true);
      }
    }
  }
}

// D in place becomes C' = scale (P' (D₀ - c₀) + P (D - c')); without primal D₀ and P', C.
template <typename Real>
void pull(const Head<Real>& head, const Real* p, const Real* centred, const Real* primal,
          const Real* dp, Real* d) {
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
void pull_primal(const Head<Real>& head, const Real* p, Real* d, Real* centred, Real* c) {
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
  Board<Real> board;
  for (int64_t task = begin; task < end; ++task) {
    const Head<Real> head(shape, in, task);
    board.start(head, second ? 4 : 2, second ? 6 : 2);
    Real *keys = board.transposed(), *values = board.transposed();
    Real *p = board.square(), *d = board.square();
    Real *moved_k = nullptr, *moved_v = nullptr;
    Real *dp = nullptr, *primal = nullptr, *centred = nullptr, *c = nullptr;
    if (second) {
      moved_k = board.transposed(), moved_v = board.transposed();
      dp = board.square(), primal = board.square(), centred = board.square(), c = board.square();
    }
    head.transpose(head.k, keys);
    head.transpose(head.v, values);
    for (int64_t h = 0; h < head.group; ++h) {
      const auto q = head.query_rows(in.q, h, 1, 0);
      const bool add = h > 0;
      head.scores(q, keys, p, false);
      head.softmax(p);
      const auto at_output = second ? head.query_rows(delta, h, 1, 0) : Lines<const Real>{};
      if (second) {
        head.scores(at_output, values, primal, false);
        pull_primal(head, p, primal, centred, c);
      }
      for (int64_t j = 0; j < k; ++j) {
        const auto grad = head.query_rows(grads, h, k, j);
        const auto to_q = head.query_rows(result.q, h, k, j);
        const auto to_k = head.key_rows(result.k, k, j), to_v = head.key_rows(result.v, k, j);
        head.scores(grad, values, d, false);
        head.spread(p, grad, to_v, add);
        if (second) {
          const auto dq = head.query_rows(tangents.q, h, k, j);
          const auto dk = head.key_rows(tangents.k, k, j);
          head.transpose(dk, moved_k);
          head.transpose(head.key_rows(tangents.v, k, j), moved_v);
          head.scores(dq, keys, dp, false);
          head.scores(q, moved_k, dp, true);
          bend(head, p, dp);
          head.scores(at_output, moved_v, d, true);
          head.spread(dp, at_output, to_v, true);
          pull(head, p, centred, primal, dp, d);
          head.mix(c, dk, to_q, false);
          head.spread(c, dq, to_k, add);
        } else {
          pull<Real>(head, p, nullptr, nullptr, nullptr, d);
        }
        head.mix(d, head.k, to_q, second);
        head.spread(d, q, to_k, add || second);
      }
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
