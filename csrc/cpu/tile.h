// Outer products in register tiles: vectors of the instruction set at hand, the micro-kernel, and
// panels of columns to run it on. For kernels that are compiled once for each instruction set:
// everything here belongs to the file that includes it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpu/sample_outer_kernel.h"

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

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

inline float widen(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

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
      const int64_t bytes = blocks(size * static_cast<int64_t>(sizeof(Real)), 64) * 64;
      data_ = static_cast<Real*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
      if (data_ == nullptr) std::abort();
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
