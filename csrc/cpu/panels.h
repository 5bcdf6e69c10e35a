// Factors in panels of kColumns columns, one after the other and each without gaps: a panel stays
// in L1 whatever the factor's width, where rows a power of two apart would share few of its sets.
#pragma once

#include "cpu/transpose.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kDepth = 128;  // rows of a panel that are used together

// Calls visit(first column, columns) for all panels of a factor, whole vectors of columns.
template <typename Real, typename Visit>
inline void for_panels(int64_t columns, Visit visit) {
  for (int64_t c = 0; c < columns; c += kColumns<Real>) {
    visit(c, min(kColumns<Real>, columns - c));
  }
}

// to[i][c] (+)= Σ_j rows[i][j] factor[j][c]
template <typename Real>
void multiply_panels(const Real* rows, int64_t stride, int64_t count, int64_t depth,
                     const Real* factor, int64_t columns, bool more, Real* to, int64_t to_stride) {
  for_panels<Real>(columns, [&](int64_t c, int64_t wide) {
    for (int64_t j = 0; j == 0 || j < depth; j += kDepth) {
      multiply<Real>({rows + j, stride, 1}, count, min(kDepth, depth - j),
                     factor + depth * c + j * wide, wide, wide, more || j > 0, to + c, to_stride);
    }
  });
}

}  // namespace
}  // namespace fudlr::FUDLR_ISA
