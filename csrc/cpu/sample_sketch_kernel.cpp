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
    const int64_t depth = min(kDepth, width - start);
    for (int64_t column = 0; column < q; column += kColumns<Real>) {
      visit(start, depth, column, row_size<Real>(min(kColumns<Real>, q - column)));
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

template <typename In, typename Real>
void project(Factor<In> rows, int64_t first, int64_t count, const Real* packed, int64_t q,
             Real* to) {
  const int64_t to_stride = row_size<Real>(q);
  const In* data = rows.data + first * rows.stride;
  for_panels<Real>(q, rows.size, [&](int64_t start, int64_t depth, int64_t column, int64_t padded) {
    multiply<In, Real>(data + start, rows.stride, count, depth, packed, padded, padded, start > 0,
                       to + column, to_stride);
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
