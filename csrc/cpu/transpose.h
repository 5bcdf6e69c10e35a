// Rows of numbers turned into columns, for products that want them so.
#pragma once

#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

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

}  // namespace
}  // namespace fudlr::FUDLR_ISA
