// RMS norm: y = w x r with r = (mean x² + ε)^(-1/2), so r' = -r³ mean(x x') and, with g = w δ and
// m = mean(g x), the backward is r g - r³ m x; its derivative is the product rule on both terms.
//
// SwiGLU: a = silu(g) u. With s the sigmoid of g, silu = g s, silu' = s (1 + g (1 - s)) and
// silu'' = s (1 - s) (2 + g (1 - 2 s)).
//
// A row's sums are taken in the order of its lanes, whatever the batch and the threads.
#include "cpu/decoder_kernel.h"

#include "cpu/vexp.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kBlock = 256;  // columns that SwiGLU's coefficients are kept for, in L1

template <typename Real>
Real dot(const Real* a, const Real* b, int64_t width) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename Real>
Real dot(const Real* a, const Real* b, const Real* c, int64_t width) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += a[i] * b[i] * c[i];
  return sum;
}

template <typename Real>
void norm(Lines<const Real> x, Lines<const Real> added, const Real* weight, double eps,
          int64_t width, int64_t begin, int64_t end, Lines<Real> sum, Lines<Real> y, Real* scale) {
  for (int64_t t = begin; t < end; ++t) {
    const Real* row = x.at(t);
    if (added.data != nullptr) {
      const Real* other = added.at(t);
      Real* to = sum.at(t);
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[i] = row[i] + other[i];
      row = to;
    }
    const Real mean = dot(row, row, width) / static_cast<Real>(width);
    const Real r = Real(1) / static_cast<Real>(__builtin_sqrt(double(mean) + eps));
    Real* out = y.at(t);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] = weight[i] * (row[i] * r);
    scale[t] = r;
  }
}

template <typename Real>
void norm_tangent(const NormInput<Real>& in, Lines<const Real> dx, int64_t k, int64_t begin,
                  int64_t end, Lines<Real> dy) {
  for (int64_t t = begin; t < end; ++t) {
    const Real* x = in.x.at(t);
    const Real r = in.scale[t];
    for (int64_t row = t * k; row < (t + 1) * k; ++row) {
      const Real* tangent = dx.at(row);
      const Real dr = -r * r * r * dot(x, tangent, in.width) / static_cast<Real>(in.width);
      Real* out = dy.at(row);
#pragma omp simd
      for (int64_t i = 0; i < in.width; ++i) out[i] = in.weight[i] * (tangent[i] * r + x[i] * dr);
    }
  }
}

template <typename Real>
void norm_backward(const NormInput<Real>& in, Lines<const Real> grads, Lines<const Real> added,
                   Lines<const Real> delta, Lines<const Real> dx, int64_t k, int64_t begin,
                   int64_t end, Lines<Real> result) {
  const int64_t width = in.width;
  const Real share = Real(1) / static_cast<Real>(width);
  const Real* w = in.weight;
  for (int64_t t = begin; t < end; ++t) {
    const Real* x = in.x.at(t);
    const Real* primal = delta.at(t);
    const Real r = in.scale[t], r3 = r * r * r;
    const Real m = primal == nullptr ? Real(0) : dot(w, primal, x, width) * share;
    for (int64_t row = t * k; row < (t + 1) * k; ++row) {
      const Real* grad = grads.at(row);
      const Real* other = added.at(row);
      Real* out = result.at(row);
      Real along = r3 * dot(w, grad, x, width) * share;
      if (primal == nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) out[i] = r * w[i] * grad[i] - along * x[i];
      } else {
        const Real* tangent = dx.at(row);
        const Real dr = -r3 * dot(x, tangent, width) * share;
        along += r3 * dot(w, primal, tangent, width) * share + Real(3) * r * r * dr * m;
        const Real along_tangent = r3 * m;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          out[i] =
              w[i] * (r * grad[i] + dr * primal[i]) - along_tangent * tangent[i] - along * x[i];
        }
      }
      if (other != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) out[i] += other[i];
      }
    }
  }
}

template <typename Real>
inline Vector<Real> sigmoid(Vector<Real> x) {
  return Real(1) / (vexp<Real>(-x) + Real(1));
}

// s(g) of one block.
template <typename Real>
void sigmoids(const Real* g, int64_t count, Real* s) {
  for_vectors(g, s, count, [](Vector<Real> x) { return sigmoid<Real>(x); });
}

// Calls use(first column, how many) for blocks of a row.
template <typename Use>
inline void for_blocks(int64_t width, Use use) {
  for (int64_t i = 0; i < width; i += kBlock) use(i, min(kBlock, width - i));
}

template <typename Real>
void swiglu(Lines<const Real> gu, int64_t width, int64_t begin, int64_t end, Lines<Real> a) {
  Real s[kBlock];
  for (int64_t t = begin; t < end; ++t) {
    for_blocks(width, [&](int64_t first, int64_t count) {
      const Real* g = gu.at(t) + first;
      const Real* u = g + width;
      Real* out = a.at(t) + first;
      sigmoids(g, count, s);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) out[i] = g[i] * s[i] * u[i];
    });
  }
}

// What is the same for all tangents at one position: silu, silu' and silu' u of a block.
template <typename Real>
struct Coefficients {
  Real s[kBlock], value[kBlock], derivative[kBlock], derivative_u[kBlock];

  void set(const Real* g, const Real* u, int64_t count) {
    sigmoids(g, count, s);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      value[i] = g[i] * s[i];
      derivative[i] = s[i] * (Real(1) + g[i] * (Real(1) - s[i]));
      derivative_u[i] = derivative[i] * u[i];
    }
  }
};

template <typename Real>
void swiglu_tangent(Lines<const Real> gu, Lines<const Real> dgu, int64_t width, int64_t k,
                    int64_t begin, int64_t end, Lines<Real> da) {
  Coefficients<Real> c;
  for (int64_t t = begin; t < end; ++t) {
    for_blocks(width, [&](int64_t first, int64_t count) {
      const Real* g = gu.at(t) + first;
      c.set(g, g + width, count);
      for (int64_t row = t * k; row < (t + 1) * k; ++row) {
        const Real* dg = dgu.at(row) + first;
        const Real* du = dg + width;
        Real* out = da.at(row) + first;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) out[i] = c.derivative_u[i] * dg[i] + c.value[i] * du[i];
      }
    });
  }
}

template <typename Real>
void swiglu_backward(Lines<const Real> gu, Lines<const Real> grads, Lines<const Real> delta,
                     Lines<const Real> dgu, int64_t width, int64_t k, int64_t begin, int64_t end,
                     Lines<Real> result) {
  Coefficients<Real> c;
  Real second[kBlock];
  for (int64_t t = begin; t < end; ++t) {
    for_blocks(width, [&](int64_t first, int64_t count) {
      const Real* g = gu.at(t) + first;
      const Real* u = g + width;
      const Real* primal = delta.data == nullptr ? nullptr : delta.at(t) + first;
      c.set(g, u, count);
      if (primal != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const Real s = c.s[i];
          second[i] =
              primal[i] * s * (Real(1) - s) * (Real(2) + g[i] * (Real(1) - Real(2) * s)) * u[i];
          c.derivative[i] *= primal[i];
        }
      }
      for (int64_t row = t * k; row < (t + 1) * k; ++row) {
        const Real* grad = grads.at(row) + first;
        Real* to_g = result.at(row) + first;
        Real* to_u = to_g + width;
        if (primal == nullptr) {
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) {
            to_g[i] = c.derivative_u[i] * grad[i];
            to_u[i] = c.value[i] * grad[i];
          }
          continue;
        }
        const Real* dg = dgu.at(row) + first;
        const Real* du = dg + width;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          to_g[i] = c.derivative_u[i] * grad[i] + c.derivative[i] * du[i] + second[i] * dg[i];
          to_u[i] = c.value[i] * grad[i] + c.derivative[i] * dg[i];
        }
      }
    });
  }
}

template <typename Real>
void rotate(Lines<Real> x, Lines<const Real> cos, Lines<const Real> sin, int64_t heads,
            int64_t width, bool inverse, int64_t k, int64_t begin, int64_t end) {
  const int64_t half = width / 2;
  for (int64_t t = begin; t < end; ++t) {
    const Real *c1 = cos.at(t), *c2 = c1 + half, *s1 = sin.at(t), *s2 = s1 + half;
    for (int64_t row = t * k; row < (t + 1) * k; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        Real* first = x.at(row) + head * width;
        Real* second = first + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const Real a = first[i], b = second[i];
          first[i] = a * c1[i] + b * (inverse ? s2[i] : -s1[i]);
          second[i] = b * c2[i] + a * (inverse ? -s1[i] : s2[i]);
        }
      }
    }
  }
}

template <typename Real>
constexpr DecoderKernels<Real> kernels() {
  return {norm<Real>,           norm_tangent<Real>,    norm_backward<Real>, swiglu<Real>,
          swiglu_tangent<Real>, swiglu_backward<Real>, rotate<Real>};
}

}  // namespace

const DecoderTable decoder = {kernels<float>(), kernels<double>()};

}  // namespace fudlr::FUDLR_ISA
