// Numbers of stored rows, of whatever type, in the vectors that products are taken in. For kernels
// that are compiled once for each instruction set: everything here belongs to the including file.
#pragma once

#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

inline float number(float value) { return value; }
inline double number(double value) { return value; }
inline float number(Bfloat16 value) { return widen(value); }
inline float number(Int8 value) { return static_cast<float>(value.value); }

// Numbers of a vector register, read from where they are stored.
inline Vector<float> fetch(const float* from) { return load(from); }
inline Vector<double> fetch(const double* from) { return load(from); }
#if defined(__AVX512F__)
inline Vector<float> fetch(const Bfloat16* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline Vector<float> fetch(const Int8* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
#elif defined(__AVX2__)
inline Vector<float> fetch(const Bfloat16* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
// The same with an instruction less, and a register more, which the second product has.
inline Vector<float> fetch_wide(const Bfloat16* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i to = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                      -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(halves), to));
}
inline Vector<float> fetch(const Int8* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
#else
template <typename In>
inline Vector<float> fetch(const In* from) {
  float numbers[kWidth<float>];
  for (int64_t i = 0; i < kWidth<float>; ++i) numbers[i] = number(from[i]);
  return load(numbers);
}
#endif
template <typename In>
inline auto fetch_wide(const In* from) {
  return fetch(from);
}

}  // namespace
}  // namespace fudlr::FUDLR_ISA
