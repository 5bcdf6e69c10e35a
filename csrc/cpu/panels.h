// Factors in panels of kColumns columns, one after the other and each without gaps: a panel stays
// in L1 whatever the factor's width, where rows a power of two apart would share few of its sets.
#pragma once

#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kDepth = 128;  // rows of a panel that are used together

// to[j][t] = from[t][j] for `count` rows of `columns` numbers.
template <typename In, typename Real>
inline void turn(const In* __restrict from, int64_t stride, int64_t count, int64_t columns,
                 Real* __restrict to, int64_t to_stride) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_stride + t] = widen(from[t * stride + j]);
  }
}
#if defined(__AVX2__)
// Eight rows of four numbers at a time: halves of registers are loaded where they belong, since
// shuffles across halves cost more than all others together.
template <>
inline void turn(const float* __restrict from, int64_t stride, int64_t count, int64_t columns,
                 float* __restrict to, int64_t to_stride) {
  const int64_t fours = columns / 4 * 4, eights = count / 8 * 8;
  for (int64_t t = 0; t < eights; t += 8) {
    for (int64_t j = 0; j < fours; j += 4) {
      const float* first = from + t * stride + j;
      float* place = to + j * to_stride + t;
      __m256 row[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first + i * stride)),
                                      _mm_loadu_ps(first + (i + 4) * stride), 1);
      }
      const __m256 a = _mm256_unpacklo_ps(row[0], row[1]), b = _mm256_unpacklo_ps(row[2], row[3]);
      const __m256 c = _mm256_unpackhi_ps(row[0], row[1]), d = _mm256_unpackhi_ps(row[2], row[3]);
      _mm256_storeu_ps(place, _mm256_shuffle_ps(a, b, 0x44));
      _mm256_storeu_ps(place + to_stride, _mm256_shuffle_ps(a, b, 0xee));
      _mm256_storeu_ps(place + 2 * to_stride, _mm256_shuffle_ps(c, d, 0x44));
      _mm256_storeu_ps(place + 3 * to_stride, _mm256_shuffle_ps(c, d, 0xee));
    }
  }
  const auto rest = [&](int64_t t, int64_t end, int64_t j0) {
    for (; t < end; ++t) {
      for (int64_t j = j0; j < columns; ++j) to[j * to_stride + t] = from[t * stride + j];
    }
  };
  if (fours < columns) rest(0, eights, fours);
  rest(eights, count, 0);
}
#endif

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
      multiply<Real, Real>(rows + j, stride, count, min(kDepth, depth - j),
                           factor + depth * c + j * wide, wide, wide, more || j > 0, to + c,
                           to_stride);
    }
  });
}

}  // namespace
}  // namespace fudlr::FUDLR_ISA
