// A transformer's elementwise parts, their derivatives along k tangents, their backward, and the
// backward's derivative; float and double, and numbers of 16 bits that are computed with in float
// and rounded once, as a result.
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
#include "cuda/decoder.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kDecoderThreads = 256;

// A vector of numbers of one row, as they are computed with.
template <typename In>
struct Piece {
  alignas(16) Sum<In> numbers[kVector<In>];
  FUDLR_DEVICE Sum<In>& operator[](int v) { return numbers[v]; }
  FUDLR_DEVICE const Sum<In>& operator[](int v) const { return numbers[v]; }
};

// An array as the kernels see it. Vectors begin at multiples of a vector from `offset` on.
template <typename In>
struct Row {
  const In* data;
  bool aligned;

  FUDLR_DEVICE Row(const gpu::Lines& lines, int64_t row, int64_t offset = 0)
      : data(lines.data == nullptr
                 ? nullptr
                 : static_cast<const In*>(lines.data) + row * lines.stride + offset),
        aligned(is_aligned(data)) {}
  FUDLR_DEVICE bool given() const { return data != nullptr; }
  FUDLR_DEVICE Piece<In> at(int64_t column, int64_t width) const {
    Piece<In> piece;
    if constexpr (sizeof(In) == 2) {
      alignas(16) In raw[kVector<In>];
      load_some(data + column, width - column, aligned, raw);
#pragma unroll
      for (int v = 0; v < kVector<In>; ++v) piece[v] = widen(raw[v]);
    } else {
      load_some(data + column, width - column, aligned, piece.numbers);
    }
    return piece;
  }
};
template <typename In>
FUDLR_DEVICE void put(const gpu::OutLines& lines, int64_t row, int64_t offset, int64_t column,
                      int64_t width, const Piece<In>& piece) {
  In* data = static_cast<In*>(lines.data) + row * lines.stride + offset;
  if constexpr (sizeof(In) == 2) {
    alignas(16) In raw[kVector<In>];
#pragma unroll
    for (int v = 0; v < kVector<In>; ++v) raw[v] = narrow_to<In>(piece[v]);
    store_some(raw, width - column, is_aligned(data), data + column);
  } else {
    store_some(piece.numbers, width - column, is_aligned(data), data + column);
  }
}

// Σ over the block of what make(column, vector's number) gives for every number of a row.
template <typename In, typename Make>
FUDLR_DEVICE Sum<In> row_sum(int64_t width, Make make) {
  constexpr int V = kVector<In>;
  Sum<In> sum = 0;
  for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
    sum += make(column);
  }
  return block_total(sum);
}

template <typename In>
FUDLR_DEVICE Sum<In> dot(const Piece<In>& a, const Piece<In>& b) {
  Sum<In> sum = 0;
#pragma unroll
  for (int v = 0; v < kVector<In>; ++v) sum += a[v] * b[v];
  return sum;
}
template <typename In>
FUDLR_DEVICE Sum<In> dot(const Piece<In>& a, const Piece<In>& b, const Piece<In>& c) {
  Sum<In> sum = 0;
#pragma unroll
  for (int v = 0; v < kVector<In>; ++v) sum += a[v] * b[v] * c[v];
  return sum;
}

template <typename In>
FUDLR_KERNEL(kDecoderThreads, 4)
rms_norm_kernel(gpu::Norm norm, gpu::Lines added, double eps, gpu::OutLines sum, gpu::OutLines y,
                Sum<In>* scale) {
  using Real = Sum<In>;
  constexpr int V = kVector<In>;
  const int64_t width = norm.width;
  const Row<In> weight({norm.weight, 0}, 0);
  for (int64_t t = blockIdx.x; t < norm.rows; t += gridDim.x) {
    const Row<In> x(norm.x, t), other(added, t);
    const auto input = [&](int64_t column) {
      Piece<In> piece = x.at(column, width);
      if (other.given()) {
        const Piece<In> more = other.at(column, width);
#pragma unroll
        for (int v = 0; v < V; ++v) piece[v] += more[v];
      }
      return piece;
    };
    const Real squares = row_sum<In>(width, [&](int64_t column) {
      const Piece<In> piece = input(column);
      if (other.given()) put(sum, t, 0, column, width, piece);
      return dot(piece, piece);
    });
    const Real mean = squares / static_cast<Real>(width);
    const Real r = Real(1) / static_cast<Real>(sqrt(static_cast<double>(mean) + eps));
    for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
      Piece<In> piece = input(column);
      const Piece<In> w = weight.at(column, width);
#pragma unroll
      for (int v = 0; v < V; ++v) piece[v] = w[v] * (piece[v] * r);
      put(y, t, 0, column, width, piece);
    }
    if (threadIdx.x == 0) scale[t] = r;
  }
}

template <typename In>
FUDLR_KERNEL(kDecoderThreads, 4)
rms_norm_tangent_kernel(gpu::Norm norm, gpu::Lines tangents, int64_t k, gpu::OutLines result) {
  using Real = Sum<In>;
  constexpr int V = kVector<In>;
  const int64_t width = norm.width;
  const Row<In> weight({norm.weight, 0}, 0);
  for (int64_t row = blockIdx.x; row < norm.rows * k; row += gridDim.x) {
    const Row<In> x(norm.x, row / k), dx(tangents, row);
    const Real r = static_cast<const Real*>(norm.scale)[row / k];
    const Real along = row_sum<In>(
        width, [&](int64_t column) { return dot(x.at(column, width), dx.at(column, width)); });
    const Real dr = -r * r * r * along / static_cast<Real>(width);
    for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
      const Piece<In> w = weight.at(column, width), from = x.at(column, width);
      Piece<In> piece = dx.at(column, width);
#pragma unroll
      for (int v = 0; v < V; ++v) piece[v] = w[v] * (piece[v] * r + from[v] * dr);
      put(result, row, 0, column, width, piece);
    }
  }
}

template <typename In>
FUDLR_KERNEL(kDecoderThreads, 3)
rms_norm_backward_kernel(gpu::Norm norm, gpu::Lines grads, gpu::Lines added, gpu::Lines delta,
                         gpu::Lines tangents, int64_t k, gpu::OutLines result) {
  using Real = Sum<In>;
  constexpr int V = kVector<In>;
  const int64_t width = norm.width;
  const Real share = Real(1) / static_cast<Real>(width);
  const Row<In> weight({norm.weight, 0}, 0);
  for (int64_t row = blockIdx.x; row < norm.rows * k; row += gridDim.x) {
    const int64_t t = row / k;
    const Row<In> x(norm.x, t), grad(grads, row), other(added, row), primal(delta, t),
        dx(tangents, row);
    const Real r = static_cast<const Real*>(norm.scale)[t], r3 = r * r * r;
    Real along =
        r3 * share * row_sum<In>(width, [&](int64_t column) {
          return dot(weight.at(column, width), grad.at(column, width), x.at(column, width));
        });
    Real dr = 0, turned = 0;
    if (primal.given()) {
      const Real m =
          share * row_sum<In>(width, [&](int64_t column) {
            return dot(weight.at(column, width), primal.at(column, width), x.at(column, width));
          });
      dr = -r3 * share * row_sum<In>(width, [&](int64_t column) {
        return dot(x.at(column, width), dx.at(column, width));
      });
      along +=
          r3 * share * row_sum<In>(width, [&](int64_t column) {
            return dot(weight.at(column, width), primal.at(column, width), dx.at(column, width));
          });
      along += Real(3) * r * r * dr * m;
      turned = r3 * m;
    }
    for (int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
      const Piece<In> w = weight.at(column, width), from = x.at(column, width);
      Piece<In> piece = grad.at(column, width);
#pragma unroll
      for (int v = 0; v < V; ++v) piece[v] = r * w[v] * piece[v] - along * from[v];
      if (primal.given()) {
        const Piece<In> d = primal.at(column, width), moved = dx.at(column, width);
#pragma unroll
        for (int v = 0; v < V; ++v) piece[v] += w[v] * dr * d[v] - turned * moved[v];
      }
      if (other.given()) {
        const Piece<In> more = other.at(column, width);
#pragma unroll
        for (int v = 0; v < V; ++v) piece[v] += more[v];
      }
      put(result, row, 0, column, width, piece);
    }
  }
}

// Calls use(row, column) for a thread's vectors of `rows` rows of `width` numbers.
template <typename In, typename Use>
FUDLR_DEVICE void for_vectors(int64_t rows, int64_t width, Use use) {
  const int64_t across = (width + kVector<In> - 1) / kVector<In>;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < rows * across;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    use(e / across, e % across * kVector<In>);
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

template <typename In>
FUDLR_KERNEL(kDecoderThreads, 4)
swiglu_kernel(gpu::Gated in, gpu::OutLines a) {
  for_vectors<In>(in.rows, in.width, [&](int64_t t, int64_t column) {
    const Piece<In> g = Row<In>(in.gu, t).at(column, in.width);
    Piece<In> u = Row<In>(in.gu, t, in.width).at(column, in.width);
#pragma unroll
    for (int v = 0; v < kVector<In>; ++v) u[v] *= Silu<Sum<In>>(g[v]).value;
    put(a, t, 0, column, in.width, u);
  });
}

template <typename In>
FUDLR_KERNEL(kDecoderThreads, 4)
swiglu_tangent_kernel(gpu::Gated in, gpu::Lines dgu, int64_t k, gpu::OutLines da) {
  for_vectors<In>(in.rows * k, in.width, [&](int64_t row, int64_t column) {
    const Piece<In> g = Row<In>(in.gu, row / k).at(column, in.width);
    const Piece<In> u = Row<In>(in.gu, row / k, in.width).at(column, in.width);
    Piece<In> dg = Row<In>(dgu, row).at(column, in.width);
    const Piece<In> du = Row<In>(dgu, row, in.width).at(column, in.width);
#pragma unroll
    for (int v = 0; v < kVector<In>; ++v) {
      const Silu<Sum<In>> silu(g[v]);
      dg[v] = silu.slope * u[v] * dg[v] + silu.value * du[v];
    }
    put(da, row, 0, column, in.width, dg);
  });
}

// Of 16 bits a thread holds eight numbers of each array.
template <typename In>
FUDLR_KERNEL(kDecoderThreads, sizeof(In) == 2 ? 2 : 3)
swiglu_backward_kernel(gpu::Gated in, gpu::Lines grads, gpu::Lines delta, gpu::Lines dgu, int64_t k,
                       gpu::OutLines result) {
  for_vectors<In>(in.rows * k, in.width, [&](int64_t row, int64_t column) {
    const int64_t t = row / k;
    const Piece<In> g = Row<In>(in.gu, t).at(column, in.width);
    const Piece<In> u = Row<In>(in.gu, t, in.width).at(column, in.width);
    const Piece<In> grad = Row<In>(grads, row).at(column, in.width);
    Piece<In> to_g, to_u;
#pragma unroll
    for (int v = 0; v < kVector<In>; ++v) {
      const Silu<Sum<In>> silu(g[v]);
      to_g[v] = silu.slope * u[v] * grad[v];
      to_u[v] = silu.value * grad[v];
    }
    if (delta.data != nullptr) {
      const Piece<In> primal = Row<In>(delta, t).at(column, in.width);
      const Piece<In> dg = Row<In>(dgu, row).at(column, in.width);
      const Piece<In> du = Row<In>(dgu, row, in.width).at(column, in.width);
#pragma unroll
      for (int v = 0; v < kVector<In>; ++v) {
        const Silu<Sum<In>> silu(g[v]);
        to_g[v] += primal[v] * (silu.slope * du[v] + silu.bend * u[v] * dg[v]);
        to_u[v] += primal[v] * silu.slope * dg[v];
      }
    }
    put(result, row, 0, column, in.width, to_g);
    put(result, row, in.width, column, in.width, to_u);
  });
}

template <typename In>
FUDLR_KERNEL(kDecoderThreads, 4)
rotate_heads_kernel(gpu::OutLines x, gpu::Lines cos, gpu::Lines sin, int64_t rows, int64_t heads,
                    int64_t width, bool inverse, int64_t k) {
  using Real = Sum<In>;
  const int64_t half = width / 2;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < rows * k * half;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = e / half, i = e % half;
    const In* c = Row<In>(cos, row / k).data + i;
    const In* s = Row<In>(sin, row / k).data + i;
    const Real to_first = inverse ? widen(s[half]) : -widen(s[0]);
    const Real to_second = inverse ? -widen(s[0]) : widen(s[half]);
    const Real keep_first = widen(c[0]), keep_second = widen(c[half]);
    In* first = static_cast<In*>(x.data) + row * x.stride + i;
    for (int64_t head = 0; head < heads; ++head, first += width) {
      const Real a = widen(first[0]), b = widen(first[half]);
      const Real turned_a = a * keep_first + b * to_first,
                 turned_b = b * keep_second + a * to_second;
      if constexpr (sizeof(In) == 2) {
        first[0] = narrow_to<In>(turned_a);
        first[half] = narrow_to<In>(turned_b);
      } else {
        first[0] = turned_a;
        first[half] = turned_b;
      }
    }
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
