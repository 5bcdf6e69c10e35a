// e^x on vectors of the instruction set at hand, to the last place but one: x = n ln 2 + r with
// |r| <= ln 2 / 2, e^r by its Taylor polynomial, 2^n into the exponent's bits.
#pragma once

#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

template <typename Real>
struct Bits;
template <>
struct Bits<float> {
  typedef int32_t Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr float round = 0x1.8p23f;  // adding it leaves the nearest integer's bits
  static constexpr int mantissa = 23;
  static constexpr int degree = 7;
  static constexpr float smallest = -87.f, largest = 88.f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};
template <>
struct Bits<double> {
  typedef int64_t Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr double round = 0x1.8p52;
  static constexpr int mantissa = 52;
  static constexpr int degree = 13;
  static constexpr double smallest = -708, largest = 709;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
};

template <typename Real>
constexpr Real inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<Real>(1 / product);
}

// Of numbers between the smallest and the largest; of others it is without meaning, of NaN NaN.
template <typename Real>
inline Vector<Real> vexp_within(Vector<Real> x) {
  using B = Bits<Real>;
  const Vector<Real> zero{};
  const Vector<Real> shifted = x * Real(1.4426950408889634) + B::round;
  const Vector<Real> n = shifted - B::round;
  const Vector<Real> r = (x - n * B::ln2_high) - n * B::ln2_low;
  Vector<Real> sum = zero + inverse_factorial<Real>(B::degree);
#pragma GCC unroll 16
  for (int i = B::degree - 1; i >= 0; --i) sum = sum * r + inverse_factorial<Real>(i);
  typename B::Vector bits, start, one;
  const Vector<Real> round = zero + B::round, unit = zero + Real(1);
  std::memcpy(&bits, &shifted, sizeof(bits));
  std::memcpy(&start, &round, sizeof(start));
  std::memcpy(&one, &unit, sizeof(one));
  bits = ((bits - start) << B::mantissa) + one;
  Vector<Real> power;
  std::memcpy(&power, &bits, sizeof(power));
  return sum * power;
}

template <typename Real>
inline Vector<Real> vexp(Vector<Real> x) {
  using B = Bits<Real>;
  const Vector<Real> zero{};
  x = x < B::smallest ? zero + B::smallest : x;
  x = x > B::largest ? zero + B::largest : x;
  return vexp_within<Real>(x);
}

// Calls map(Vector) on `count` numbers, the last ones in a vector filled up with zeros.
template <typename Real, typename Map>
inline void for_vectors(const Real* from, Real* to, int64_t count, Map map) {
  int64_t j = 0;
  for (; j + kWidth<Real> <= count; j += kWidth<Real>) store(to + j, map(load(from + j)));
  if (j == count) return;
  Real rest[kWidth<Real>] = {};
  std::memcpy(rest, from + j, static_cast<size_t>(count - j) * sizeof(Real));
  store(rest, map(load(rest)));
  std::memcpy(to + j, rest, static_cast<size_t>(count - j) * sizeof(Real));
}

}  // namespace
}  // namespace fudlr::FUDLR_ISA
