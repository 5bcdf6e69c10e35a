// A transformer's elementwise parts, their derivatives along k tangents, their backward, and the
// backward's derivative; float and double.
//
// RMS norm: y = w x r with r = (mean x² + ε)^(-1/2), so r' = -r³ mean(x x') and, with g = w δ and
// m = mean(g x), the backward is r g - r³ m x; its derivative is the product rule on both terms.
//
// SwiGLU: a = silu(g) u. With s the sigmoid of g, silu = g s, silu' = s (1 + g (1 - s)) and
// silu'' = s (1 - s) (2 + g (1 - 2 s)).
//
// Who does what. A norm's row has a block of up to 256 threads, each of which takes every 256th
// vector of 16 bytes: once for the sums, and once more, from L1 or L2, for the result. SwiGLU: a
// thread makes one vector of a row's results; rotation: a thread turns one pair of numbers of all
// heads.
//
// Order of reduction. A thread's numbers from left to right, lanes (warp_sum), warps. No atomics.
//
// Must move: each array once, a primal array k times, from L2 after the first: bytes / 3.35e12 s
// on an H100; a few operations a number are no limit.
#pragma once

#include "cuda/block.cuh"
#include "cuda/trunk.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kTrunkThreads = 256;

// A vector of numbers of one row.
template <typename Real>
struct Piece {
  alignas(16) Real numbers[kVector<Real>];
  FUDLR_DEVICE Real& operator[](int v) { return numbers[v]; }
  FUDLR_DEVICE const Real& operator[](int v) const { return numbers[v]; }
};

// An array as the kernels see it. Vectors begin at multiples of a vector from `offset` on.
template <typename Real>
struct Row {
  const Real* data;
  bool aligned;

  FUDLR_DEVICE Row(const gpu::Lines& lines, int64_t row, int64_t offset = 0)
      : data(lines.data == nullptr
                 ? nullptr
                 : static_cast<const Real*>(lines.data) + row * lines.stride + offset),
        aligned(is_aligned(data)) {}
  FUDLR_DEVICE bool given() const { return data != nullptr; }
  FUDLR_DEVICE Piece<Real> at(int64_t column, int64_t width) const {
    Piece<Real> piece;
    load_some(data + column, width - column, aligned, piece.numbers);
    return piece;
  }
};
template <typename Real>
FUDLR_DEVICE void put(const gpu::OutLines& lines, int64_t row, int64_t offset, int64_t column,
                      int64_t width, const Piece<Real>& piece) {
  Real* data = static_cast<Real*>(lines.data) + row * lines.stride + offset;
  store_some(piece.numbers, width - column, is_aligned(data), data + column);
}

// Σ over the block of what make(column, vector's number) gives for every number of a row.
template <typename Real, typename Make>
FUDLR_DEVICE Real row_sum(int64_t width, Make make) {
  constexpr int V = kVector<Real>;
  Real sum = 0;
  for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
    sum += make(column);
  }
  return block_total(sum);
}

template <typename Real>
FUDLR_DEVICE Real dot(const Piece<Real>& a, const Piece<Real>& b) {
  Real sum = 0;
#pragma unroll
  for (int v = 0; v < kVector<Real>; ++v) sum += a[v] * b[v];
  return sum;
}
template <typename Real>
FUDLR_DEVICE Real dot(const Piece<Real>& a, const Piece<Real>& b, const Piece<Real>& c) {
  Real sum = 0;
#pragma unroll
  for (int v = 0; v < kVector<Real>; ++v) sum += a[v] * b[v] * c[v];
  return sum;
}

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 4)
rms_norm_kernel(gpu::Norm norm, gpu::Lines added, double eps, gpu::OutLines sum, gpu::OutLines y,
                Real* scale) {
  constexpr int V = kVector<Real>;
  const int64_t width = norm.width;
  const Row<Real> weight({norm.weight, 0}, 0);
  for (int64_t t = blockIdx.x; t < norm.rows; t += gridDim.x) {
    const Row<Real> x(norm.x, t), other(added, t);
    const auto input = [&](int64_t column) {
      Piece<Real> piece = x.at(column, width);
      if (other.given()) {
        const Piece<Real> more = other.at(column, width);
#pragma unroll
        for (int v = 0; v < V; ++v) piece[v] += more[v];
      }
      return piece;
    };
    const Real squares = row_sum<Real>(width, [&](int64_t column) {
      const Piece<Real> piece = input(column);
      if (other.given()) put(sum, t, 0, column, width, piece);
      return dot(piece, piece);
    });
    const Real mean = squares / static_cast<Real>(width);
    const Real r = Real(1) / static_cast<Real>(sqrt(static_cast<double>(mean) + eps));
    for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
      Piece<Real> piece = input(column);
      const Piece<Real> w = weight.at(column, width);
#pragma unroll
      for (int v = 0; v < V; ++v) piece[v] = w[v] * (piece[v] * r);
      put(y, t, 0, column, width, piece);
    }
    if (threadIdx.x == 0) scale[t] = r;
  }
}

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 4)
rms_norm_tangent_kernel(gpu::Norm norm, gpu::Lines tangents, int64_t k, gpu::OutLines result) {
  constexpr int V = kVector<Real>;
  const int64_t width = norm.width;
  const Row<Real> weight({norm.weight, 0}, 0);
  for (int64_t row = blockIdx.x; row < norm.rows * k; row += gridDim.x) {
    const Row<Real> x(norm.x, row / k), dx(tangents, row);
    const Real r = static_cast<const Real*>(norm.scale)[row / k];
    const Real along = row_sum<Real>(
        width, [&](int64_t column) { return dot(x.at(column, width), dx.at(column, width)); });
    const Real dr = -r * r * r * along / static_cast<Real>(width);
    for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
      const Piece<Real> w = weight.at(column, width), from = x.at(column, width);
      Piece<Real> piece = dx.at(column, width);
#pragma unroll
      for (int v = 0; v < V; ++v) piece[v] = w[v] * (piece[v] * r + from[v] * dr);
      put(result, row, 0, column, width, piece);
    }
  }
}

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 3)
rms_norm_backward_kernel(gpu::Norm norm, gpu::Lines grads, gpu::Lines added, gpu::Lines delta,
                         gpu::Lines tangents, int64_t k, gpu::OutLines result) {
  constexpr int V = kVector<Real>;
  const int64_t width = norm.width;
  const Real share = Real(1) / static_cast<Real>(width);
  const Row<Real> weight({norm.weight, 0}, 0);
  for (int64_t row = blockIdx.x; row < norm.rows * k; row += gridDim.x) {
    const int64_t t = row / k;
    const Row<Real> x(norm.x, t), grad(grads, row), other(added, row), primal(delta, t),
        dx(tangents, row);
    const Real r = static_cast<const Real*>(norm.scale)[t], r3 = r * r * r;
    Real along =
        r3 * share * row_sum<Real>(width, [&](int64_t column) {
          return dot(weight.at(column, width), grad.at(column, width), x.at(column, width));
        });
    Real dr = 0, turned = 0;
    if (primal.given()) {
      const Real m =
          share * row_sum<Real>(width, [&](int64_t column) {
            return dot(weight.at(column, width), primal.at(column, width), x.at(column, width));
          });
      dr = -r3 * share * row_sum<Real>(width, [&](int64_t column) {
        return dot(x.at(column, width), dx.at(column, width));
      });
      along +=
          r3 * share * row_sum<Real>(width, [&](int64_t column) {
            return dot(weight.at(column, width), primal.at(column, width), dx.at(column, width));
          });
      along += Real(3) * r * r * dr * m;
      turned = r3 * m;
    }
    for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
      const Piece<Real> w = weight.at(column, width), from = x.at(column, width);
      Piece<Real> piece = grad.at(column, width);
#pragma unroll
      for (int v = 0; v < V; ++v) piece[v] = r * w[v] * piece[v] - along * from[v];
      if (primal.given()) {
        const Piece<Real> d = primal.at(column, width), moved = dx.at(column, width);
#pragma unroll
        for (int v = 0; v < V; ++v) piece[v] += w[v] * dr * d[v] - turned * moved[v];
      }
      if (other.given()) {
        const Piece<Real> more = other.at(column, width);
#pragma unroll
        for (int v = 0; v < V; ++v) piece[v] += more[v];
      }
      put(result, row, 0, column, width, piece);
    }
  }
}

// Calls use(row, column) for a thread's vectors of `rows` rows of `width` numbers.
template <typename Real, typename Use>
FUDLR_DEVICE void for_vectors(int64_t rows, int64_t width, Use use) {
  const int64_t across = (width + kVector<Real> - 1) / kVector<Real>;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < rows * across;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    use(e / across, e % across * kVector<Real>);
  }
}

// silu of g with its derivatives.
template <typename Real>
struct Silu {
  Real value, slope, bend;
  FUDLR_DEVICE explicit Silu(Real g) {
    const Real s = Real(1) / (exp(-g) + Real(1));
    value = g * s;
    slope = s * (Real(1) + g * (Real(1) - s));
    bend = s * (Real(1) - s) * (Real(2) + g * (Real(1) - Real(2) * s));
  }
};

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 4)
swiglu_kernel(gpu::Gated in, gpu::OutLines a) {
  for_vectors<Real>(in.rows, in.width, [&](int64_t t, int64_t column) {
    const Piece<Real> g = Row<Real>(in.gu, t).at(column, in.width);
    Piece<Real> u = Row<Real>(in.gu, t, in.width).at(column, in.width);
#pragma unroll
    for (int v = 0; v < kVector<Real>; ++v) u[v] *= Silu<Real>(g[v]).value;
    put(a, t, 0, column, in.width, u);
  });
}

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 4)
swiglu_tangent_kernel(gpu::Gated in, gpu::Lines dgu, int64_t k, gpu::OutLines da) {
  for_vectors<Real>(in.rows * k, in.width, [&](int64_t row, int64_t column) {
    const Piece<Real> g = Row<Real>(in.gu, row / k).at(column, in.width);
    const Piece<Real> u = Row<Real>(in.gu, row / k, in.width).at(column, in.width);
    Piece<Real> dg = Row<Real>(dgu, row).at(column, in.width);
    const Piece<Real> du = Row<Real>(dgu, row, in.width).at(column, in.width);
#pragma unroll
    for (int v = 0; v < kVector<Real>; ++v) {
      const Silu<Real> silu(g[v]);
      dg[v] = silu.slope * u[v] * dg[v] + silu.value * du[v];
    }
    put(da, row, 0, column, in.width, dg);
  });
}

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 3)
swiglu_backward_kernel(gpu::Gated in, gpu::Lines grads, gpu::Lines delta, gpu::Lines dgu, int64_t k,
                       gpu::OutLines result) {
  for_vectors<Real>(in.rows * k, in.width, [&](int64_t row, int64_t column) {
    const int64_t t = row / k;
    const Piece<Real> g = Row<Real>(in.gu, t).at(column, in.width);
    const Piece<Real> u = Row<Real>(in.gu, t, in.width).at(column, in.width);
    const Piece<Real> grad = Row<Real>(grads, row).at(column, in.width);
    Piece<Real> to_g, to_u;
#pragma unroll
    for (int v = 0; v < kVector<Real>; ++v) {
      const Silu<Real> silu(g[v]);
      to_g[v] = silu.slope * u[v] * grad[v];
      to_u[v] = silu.value * grad[v];
    }
    if (delta.data != nullptr) {
      const Piece<Real> primal = Row<Real>(delta, t).at(column, in.width);
      const Piece<Real> dg = Row<Real>(dgu, row).at(column, in.width);
      const Piece<Real> du = Row<Real>(dgu, row, in.width).at(column, in.width);
#pragma unroll
      for (int v = 0; v < kVector<Real>; ++v) {
        const Silu<Real> silu(g[v]);
        to_g[v] += primal[v] * (silu.slope * du[v] + silu.bend * u[v] * dg[v]);
        to_u[v] += primal[v] * silu.slope * dg[v];
      }
    }
    put(result, row, 0, column, in.width, to_g);
    put(result, row, in.width, column, in.width, to_u);
  });
}

template <typename Real>
FUDLR_KERNEL(kTrunkThreads, 4)
rotate_heads_kernel(gpu::OutLines x, gpu::Lines cos, gpu::Lines sin, int64_t rows, int64_t heads,
                    int64_t width, bool inverse, int64_t k) {
  const int64_t half = width / 2;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < rows * k * half;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = e / half, i = e % half;
    const Real* c = Row<Real>(cos, row / k).data + i;
    const Real* s = Row<Real>(sin, row / k).data + i;
    const Real to_first = inverse ? s[half] : -s[0], to_second = inverse ? -s[0] : s[half];
    const Real keep_first = c[0], keep_second = c[half];
    Real* first = static_cast<Real*>(x.data) + row * x.stride + i;
    for (int64_t head = 0; head < heads; ++head, first += width) {
      const Real a = first[0], b = first[half];
      first[0] = a * keep_first + b * to_first;
      first[half] = b * keep_second + a * to_second;
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
