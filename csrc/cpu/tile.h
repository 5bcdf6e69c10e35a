// Outer products in register tiles: vectors of the instruction set at hand, the micro-kernel, and
// panels of columns to run it on. For kernels that are compiled once for each instruction set:
// everything here belongs to the file that includes it.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpu/sample_outer_kernel.h"

namespace fudlr {

// Throws torch's error for memory that cannot be had; defined once, in checks.cpp.
[[noreturn]] void refuse_workspace(int64_t bytes);

}  // namespace fudlr

namespace fudlr::FUDLR_ISA {
namespace {

// No templates of the standard library here: its instances would be shared between instruction
// sets by the linker, and the widest could be chosen on a CPU that lacks it.

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr int kRows = 8;  // 24 sums, 3 columns, 1 broadcast of 32 registers
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
constexpr int kRows = 4;  // 12 sums, 3 columns, 1 broadcast: all 16 registers
#else
constexpr int64_t kVectorBytes = 16;
constexpr int kRows = 4;
#endif
constexpr int kVectors = 3;

template <typename Real>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4)));
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8)));
};
template <typename Real>
using Vector = typename Simd<Real>::Vector;
template <typename Real>
constexpr int64_t kWidth = kVectorBytes / static_cast<int64_t>(sizeof(Real));
template <typename Real>
constexpr int64_t kColumns = kVectors * kWidth<Real>;
template <typename Real>
constexpr int64_t kTile = kRows * kColumns<Real>;

template <typename Real>
inline Vector<Real> load(const Real* from) {
  return *reinterpret_cast<const typename Simd<Real>::Unaligned*>(from);
}
template <typename Real>
inline void store(Real* to, Vector<Real> value) {
  *reinterpret_cast<typename Simd<Real>::Unaligned*>(to) = value;
}

constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

inline float widen(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

inline void narrow(float from, float& to) { to = from; }
inline void narrow(double from, double& to) { to = from; }
// To the nearest, of two as near the even one.
inline void narrow(float from, Bfloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &from, sizeof(bits));
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits =
      static_cast<uint16_t>(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// The sum of a register's numbers, halves added to halves.
template <typename Real>
inline Real lanes_sum(const Real* lanes) {
  Real parts[kWidth<Real>];
  store(parts, load(lanes));
  for (int64_t half = kWidth<Real> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}
#if defined(__AVX2__)
inline float quarter_sum(__m128 x) {
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
#if defined(__AVX512F__)
template <>
inline float lanes_sum(const float* lanes) {
  const __m256 x = _mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8));
  return quarter_sum(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
#else
template <>
inline float lanes_sum(const float* lanes) {
  return quarter_sum(_mm_add_ps(_mm_loadu_ps(lanes), _mm_loadu_ps(lanes + 4)));
}
#endif
#endif

// Asks for a line of every page, of the smallest size there is, so that addresses are known before
// the other lines are asked for: those that wait for one set off together when it is known, and
// those that then find no room are dropped.
inline void ask_for_pages(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 4096) __builtin_prefetch(from + at, 0, 2);
}

// Memory for one call, aligned to vectors; grows, never shrinks.
template <typename Real>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  Real* get(int64_t size) {
    if (size > size_) {
      std::free(data_);
      data_ = nullptr;
      size_ = 0;
      const int64_t bytes = blocks(size * static_cast<int64_t>(sizeof(Real)), 64) * 64;
      data_ = static_cast<Real*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
      if (data_ == nullptr) refuse_workspace(bytes);
      size_ = size;
    }
    return data_;
  }

 private:
  Real* data_ = nullptr;
  int64_t size_ = 0;
};

// tile[R][C vectors] = Σ_t narrow_t wide_tᵀ over `count` positions. Where `Pack`, the columns are
// also put side by side at `packed`, which costs nothing while the adders are busy: wide rows lie
// a power of two apart as a rule and would throw each other out of L1 before the next narrow rows
// need them again. Meanwhile the next panel is asked for, which no hardware prefetcher foresees.
template <typename Real, int R, int C, bool Pack>
void outer(const Real* narrow, int64_t narrow_stride, const Real* wide, int64_t wide_stride,
           int64_t count, Real* tile, Real* packed) {
  Vector<Real> sum[R][C];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[i][c] = Vector<Real>{};
  }
  for (int64_t t = 0; t < count; ++t) {
    Vector<Real> columns[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) columns[c] = load(wide + c * kWidth<Real>);
    if constexpr (Pack) {
      __builtin_prefetch(wide + C * kWidth<Real>, 0, 2);
      __builtin_prefetch(wide + 2 * C * kWidth<Real> - 1, 0, 2);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) store(packed + c * kWidth<Real>, columns[c]);
      packed += C * kWidth<Real>;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vector<Real> row = narrow[i] - Vector<Real>{};
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[i][c] += row * columns[c];
    }
    narrow += narrow_stride;
    wide += wide_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(tile + (i * C + c) * kWidth<Real>, sum[i][c]);
  }
}

template <typename Real>
using OuterFunction = void (*)(const Real*, int64_t, const Real*, int64_t, int64_t, Real*, Real*);

// outer<rows, vectors> for the sizes at hand.
template <typename Real, bool Pack, int R = kRows, int C = kVectors>
OuterFunction<Real> choose_outer(int64_t rows, int64_t vectors) {
  if (rows < R) {
    if constexpr (R > 1) return choose_outer<Real, Pack, R - 1, C>(rows, vectors);
  }
  if (vectors < C) {
    if constexpr (C > 1) return choose_outer<Real, Pack, R, C - 1>(rows, vectors);
  }
  return outer<Real, R, C, Pack>;
}

// A matrix whose element (i, j) is data[i * row + j * column].
template <typename Real>
struct Strided {
  const Real* data;
  int64_t row, column;
};

// to[R][C vectors] (+)= Σ_j rows[.][j] wide_j over `depth` numbers j.
template <typename Real, int R, int C>
inline void multiply_tile(Strided<Real> rows, int64_t depth, const Real* wide, int64_t wide_stride,
                          bool more, Real* to, int64_t to_stride) {
  Vector<Real> sum[R][C];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[i][c] = Vector<Real>{};
  }
  for (int64_t j = 0; j < depth; ++j) {
    Vector<Real> columns[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) columns[c] = load(wide + c * kWidth<Real>);
    wide += wide_stride;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vector<Real> row = rows.data[i * rows.row] - Vector<Real>{};
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[i][c] += row * columns[c];
    }
    rows.data += rows.column;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Real* place = to + i * to_stride + c * kWidth<Real>;
      store(place, more ? load(place) + sum[i][c] : sum[i][c]);
    }
  }
}

// Rows of a tile with C vectors of columns: with fewer vectors more rows, since otherwise the
// adders would wait for each other.
constexpr int multiply_rows(int C) { return kRows * (C == 3 ? 2 : C == 2 ? 3 : 4) / 2; }

// multiply_tile<rows, C> for the rows at hand.
template <typename Real, int C, int R = multiply_rows(C)>
auto choose_multiply(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return choose_multiply<Real, C, R - 1>(rows);
  }
  return multiply_tile<Real, R, C>;
}

template <typename Real, int C>
void multiply_panel(Strided<Real> rows, int64_t count, int64_t depth, const Real* wide,
                    int64_t wide_stride, bool more, Real* to, int64_t to_stride) {
  constexpr int R = multiply_rows(C);
  for (int64_t i = 0; i < count; i += R) {
    choose_multiply<Real, C>(min(R, count - i))({rows.data + i * rows.row, rows.row, rows.column},
                                                depth, wide, wide_stride, more, to + i * to_stride,
                                                to_stride);
  }
}

// to[i][c] (+)= Σ_j rows[i][j] wide[j][c]: `count` rows of `depth` numbers, and `columns` columns,
// whole vectors of them. Every number is one sum in the order of j, whatever else is computed.
template <typename Real>
void multiply(Strided<Real> rows, int64_t count, int64_t depth, const Real* wide,
              int64_t wide_stride, int64_t columns, bool more, Real* to, int64_t to_stride) {
  for (int64_t c = 0; c < columns; c += kColumns<Real>) {
    const auto panel = columns - c >= kColumns<Real> ? multiply_panel<Real, kVectors>
                       : columns - c > kWidth<Real>  ? multiply_panel<Real, 2>
                                                     : multiply_panel<Real, 1>;
    panel(rows, count, depth, wide + c, wide_stride, more, to + c, to_stride);
  }
}

// Some columns of a factor as Real, the last vector padded with zeros: at first the rows where
// they are, unless they have to be converted or padded, and once they have been read, side by side.
template <typename In, typename Real>
class Panel {
 public:
  void set(const In* data, int64_t stride, int64_t rows, int64_t columns, int64_t padded) {
    rows_ = rows;
    padded_ = padded;
    if constexpr (sizeof(In) == sizeof(Real)) {
      if (columns == padded) {
        data_ = reinterpret_cast<const Real*>(data);
        stride_ = stride;
        return;
      }
    }
    Real* copy = scratch_.get(rows * padded);
    data_ = copy;
    stride_ = padded;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t j = 0; j < columns; ++j) copy[j] = widen(data[j]);
      for (int64_t j = columns; j < padded; ++j) copy[j] = Real(0);
      data += stride;
      copy += padded;
    }
  }

  // tile = Σ_t narrow_t columns_tᵀ for the narrow rows of which `narrow` is the first.
  void outer_tile(const Real* narrow, int64_t narrow_stride, int64_t rows, bool again, Real* tile) {
    const int64_t vectors = padded_ / kWidth<Real>;
    if (!again || stride_ == padded_) {
      choose_outer<Real, false>(rows, vectors)(narrow, narrow_stride, data_, stride_, rows_, tile,
                                               nullptr);
      return;
    }
    Real* copy = scratch_.get(rows_ * padded_);
    choose_outer<Real, true>(rows, vectors)(narrow, narrow_stride, data_, stride_, rows_, tile,
                                            copy);
    data_ = copy;
    stride_ = padded_;
  }

  const Real* data() const { return data_; }
  int64_t stride() const { return stride_; }

 private:
  Scratch<Real> scratch_;
  const Real* data_ = nullptr;
  int64_t stride_ = 0;
  int64_t rows_ = 0;
  int64_t padded_ = 0;
};

}  // namespace
}  // namespace fudlr::FUDLR_ISA
