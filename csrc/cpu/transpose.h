// Rows of numbers turned into columns, for products that want a head's keys or values so.
#pragma once

#include "cpu/decoder_kernel.h"
#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

// to [width, padded] = rows [count, width] transposed, zero beyond the rows.
template <typename Real>
void transposed(Lines<const Real> rows, int64_t count, int64_t width, Real* to, int64_t padded) {
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t t = 0; t < count; ++t) to[i * padded + t] = rows.data[t * rows.stride + i];
    for (int64_t t = count; t < padded; ++t) to[i * padded + t] = Real(0);
  }
}
#if defined(__AVX2__)
// 8 x 8 numbers at a time in registers: a transposed row would else be written number by number.
inline void transposed_block(Lines<const float> rows, float* to, int64_t padded) {
  __m256 row[8], pair[8], quad[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(rows.data + i * rows.stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * padded, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * padded, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
  }
}
template <>
void transposed(Lines<const float> rows, int64_t count, int64_t width, float* to, int64_t padded) {
  const int64_t whole = count / 8 * 8, columns = width / 8 * 8;
  for (int64_t t = 0; t < whole; t += 8) {
    for (int64_t i = 0; i < columns; i += 8) {
      transposed_block({rows.at(t) + i, rows.stride}, to + i * padded + t, padded);
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t t = i < columns ? whole : 0; t < count; ++t) {
      to[i * padded + t] = rows.data[t * rows.stride + i];
    }
    for (int64_t t = count; t < padded; ++t) to[i * padded + t] = 0;
  }
}
#endif

}  // namespace
}  // namespace fudlr::FUDLR_ISA
