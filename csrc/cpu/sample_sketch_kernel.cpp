// to_t = P rows_t: a matrix product whose wide operand is read where it lies. A tile of kRows rows
// × up to kVectors vectors of outputs is summed in registers; the projection is packed so that the
// vectors which a tile needs follow each other. The width is taken in chunks of a fixed size, whose
// sums join the output one after the other, so that the packed part stays in L2.
//
// Every number is the sum of the same terms in the same order whatever the batch and the threads.
#include "cpu/sample_sketch_kernel.h"

#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kDepth = 512;  // numbers of a row that are added up before they join the output

template <typename Real>
int64_t row_size(int64_t q) {
  return blocks(q, kWidth<Real>) * kWidth<Real>;
}

template <typename Real>
int64_t packed_size(int64_t q, int64_t width) {
  return row_size<Real>(q) * width;
}

// Panels of at most kColumns outputs, chunk by chunk of the width.
template <typename Real, typename Visit>
void for_panels(int64_t q, int64_t width, Visit visit) {
  for (int64_t start = 0; start < width; start += kDepth) {
    const int64_t depth = least(kDepth, width - start);
    for (int64_t column = 0; column < q; column += kColumns<Real>) {
      visit(start, depth, column, row_size<Real>(least(kColumns<Real>, q - column)));
    }
  }
}

template <typename Real>
void pack(const Real* projection, int64_t stride, int64_t q, int64_t width, Real* packed) {
  for_panels<Real>(q, width, [&](int64_t start, int64_t depth, int64_t column, int64_t padded) {
    for (int64_t j = start; j < start + depth; ++j) {
      for (int64_t i = column; i < column + padded; ++i) {
        *packed++ = i < q ? projection[i * stride + j] : Real(0);
      }
    }
  });
}

// to[R][C vectors] (+)= Σ_j rows[.][j] packed_j over `depth` numbers j.
template <typename In, typename Real, int R, int C>
void product(const In* rows, int64_t stride, int64_t depth, const Real* packed, bool more, Real* to,
             int64_t to_stride) {
  Vector<Real> sum[R][C];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[i][c] = Vector<Real>{};
  }
  for (int64_t j = 0; j < depth; ++j) {
    Vector<Real> columns[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) columns[c] = load(packed + c * kWidth<Real>);
    packed += C * kWidth<Real>;
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vector<Real> row = widen(rows[i * stride + j]) - Vector<Real>{};
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[i][c] += row * columns[c];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Real* place = to + i * to_stride + c * kWidth<Real>;
      store(place, more ? load(place) + sum[i][c] : sum[i][c]);
    }
  }
}

template <typename In, typename Real>
using ProductFunction = void (*)(const In*, int64_t, int64_t, const Real*, bool, Real*, int64_t);

// product<rows, vectors> for the sizes at hand; where there is only one vector a tile has twice the
// rows, since otherwise the adders would wait for each other.
template <typename In, typename Real, int C = kVectors, int R = 2 * kRows>
ProductFunction<In, Real> choose_product(int64_t rows, int64_t vectors) {
  if constexpr (C > 1) {
    if (vectors < C) return choose_product<In, Real, C - 1, R>(rows, vectors);
    if constexpr (R > kRows) return choose_product<In, Real, C, kRows>(rows, vectors);
  }
  if constexpr (R > 1) {
    if (rows < R) return choose_product<In, Real, C, R - 1>(rows, vectors);
  }
  return product<In, Real, R, C>;
}

template <typename In, typename Real>
void project(Factor<In> rows, int64_t first, int64_t count, const Real* packed, int64_t q,
             Real* to) {
  const int64_t to_stride = row_size<Real>(q);
  const In* data = rows.data + first * rows.stride;
  for_panels<Real>(q, rows.size, [&](int64_t start, int64_t depth, int64_t column, int64_t padded) {
    const int64_t vectors = padded / kWidth<Real>;
    const int64_t most = vectors > 1 ? kRows : 2 * kRows;
    for (int64_t t = 0; t < count; t += most) {
      choose_product<In, Real>(least(most, count - t), vectors)(
          data + t * rows.stride + start, rows.stride, depth, packed, start > 0,
          to + t * to_stride + column, to_stride);
    }
    packed += depth * padded;
  });
}

template <typename In, typename Real>
constexpr SampleSketchKernels<In, Real> kernels() {
  return {packed_size<Real>, row_size<Real>, pack<Real>, project<In, Real>};
}

}  // namespace

const SampleSketchTable sample_sketch = {kernels<float, float>(), kernels<double, double>(),
                                         kernels<Bfloat16, float>()};

}  // namespace fudlr::FUDLR_ISA
