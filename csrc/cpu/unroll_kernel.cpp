// An unrolled training's step. Adam: what depends on the training alone is made for a few numbers
// at once, in L1, and used for all k lines. Layers: products of matrices one side of which is the
// rank, or twice that, on the register tiles of tile.h; operands whose rows are no whole vectors
// are copied with zeros behind them.
#include "cpu/unroll_kernel.h"

#include "cpu/transpose.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kChunk = 512;  // numbers of a vector taken at once: coefficients stay in L1

inline double root(double x) { return __builtin_sqrt(x); }
inline float root(float x) { return __builtin_sqrtf(x); }

template <typename Real>
void clipping(const AdamOptions& o, const AdamPlace<Real>& at, double* factor, double* norm) {
  *factor = 1;
  *norm = 0;
  if (o.clip <= 0) return;
  double sum = 0;
  for (int64_t i = 0; i < at.d; ++i) {
    const double raw = at.gradient[i] + static_cast<Real>(o.l2) * (at.theta[i] - at.start[i]);
    sum += raw * raw;
  }
  const double found = root(sum), clipped = o.clip / (found + 1e-6);
  if (clipped < 1) {
    *factor = clipped;
    *norm = found;
  }
}

template <typename Real>
void move(const AdamOptions& o, const AdamPlace<Real>& at, double factor, int64_t begin,
          int64_t end, AdamLines<Real> after) {
  const Real l2 = o.l2, scale = factor, coupled = o.coupled, kept = o.kept, eps = o.eps;
  const Real b1 = o.beta1, b2 = o.beta2, c1 = 1 - o.beta1, c2 = 1 - o.beta2, rate = o.rate;
  const Real corrected1 = o.correction1, corrected2 = o.correction2;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const Real raw = at.gradient[i] + l2 * (at.theta[i] - at.start[i]);
    const Real g = scale * raw + coupled * at.theta[i];
    const Real mean = b1 * at.mean[i] + c1 * g;
    const Real square = b2 * at.square[i] + c2 * (g * g);
    const Real moved = (mean / corrected1) / (root(square / corrected2) + eps);
    after.theta[i] = at.theta[i] * kept - rate * moved;
    after.mean[i] = mean;
    after.square[i] = square;
  }
}

// q, g, ∂θ'/∂m' and ∂θ'/∂v' of some numbers.
template <typename Real>
struct Linear {
  Real raw[kChunk], gradient[kChunk], by_mean[kChunk], by_square[kChunk];

  void set(const AdamOptions& o, const AdamPlace<Real>& at, double factor, int64_t first,
           int64_t count) {
    const Real l2 = o.l2, scale = factor, coupled = o.coupled, eps = o.eps, rate = o.rate;
    const Real corrected1 = o.correction1, corrected2 = o.correction2;
    const Real mean_scale = -o.rate / o.correction1;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = first + j;
      raw[j] = at.gradient[i] + l2 * (at.theta[i] - at.start[i]);
      gradient[j] = scale * raw[j] + coupled * at.theta[i];
      const Real size = root(at.square[i] / corrected2), whole = size + eps;
      by_mean[j] = mean_scale / whole;
      const Real by_root = rate * (at.mean[i] / corrected1) / (whole * whole);
      const Real by_square_here = by_root / (2 * size * corrected2);
      // Where v' is 0, g and m' are too, and v' counts for nothing.
      by_square[j] = size > 0 ? by_square_here : Real(0);
    }
  }
};

template <typename Real>
void tangent(const AdamOptions& o, const AdamPlace<Real>& at, double factor, int64_t k,
             AdamLines<const Real> before, const Real* change, double* dots, bool only_dots,
             AdamLines<Real> after) {
  const Real l2 = o.l2, scale = factor, coupled = o.coupled, kept = o.kept;
  const Real b1 = o.beta1, b2 = o.beta2, c1 = 1 - o.beta1, c2 = 2 * (1 - o.beta2);
  Linear<Real> linear;
  for (int64_t first = 0; first < at.d; first += kChunk) {
    const int64_t count = min(kChunk, at.d - first);
    linear.set(o, at, factor, first, count);
    for (int64_t line = 0; line < k; ++line) {
      const int64_t place = line * at.d + first;
      if (only_dots) {
        double sum = 0;
        for (int64_t j = 0; j < count; ++j) {
          sum += (change[place + j] + l2 * before.theta[place + j]) * linear.raw[j];
        }
        dots[line] += sum;
        continue;
      }
      const Real along = dots[line];
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const Real theta = before.theta[place + j];
        const Real q = change[place + j] + l2 * theta;
        const Real g = scale * (q - along * linear.raw[j]) + coupled * theta;
        const Real mean = b1 * before.mean[place + j] + c1 * g;
        const Real square = b2 * before.square[place + j] + c2 * linear.gradient[j] * g;
        after.theta[place + j] =
            kept * theta + linear.by_mean[j] * mean + linear.by_square[j] * square;
        after.mean[place + j] = mean;
        after.square[place + j] = square;
      }
    }
  }
}

template <typename Real>
void transposed(const AdamOptions& o, const AdamPlace<Real>& at, double factor, int64_t k,
                AdamLines<const Real> later, Real* change, double* dots, bool only_dots,
                AdamLines<Real> earlier) {
  const Real l2 = o.l2, scale = factor, coupled = o.coupled, kept = o.kept;
  const Real b1 = o.beta1, b2 = o.beta2, c1 = 1 - o.beta1, c2 = 2 * (1 - o.beta2);
  Linear<Real> linear;
  for (int64_t first = 0; first < at.d; first += kChunk) {
    const int64_t count = min(kChunk, at.d - first);
    linear.set(o, at, factor, first, count);
    for (int64_t line = 0; line < k; ++line) {
      const int64_t place = line * at.d + first;
      const Real along = dots[line];
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < count; ++j) {
        const Real theta = later.theta[place + j];
        const Real mean = later.mean[place + j] + linear.by_mean[j] * theta;
        const Real square = later.square[place + j] + linear.by_square[j] * theta;
        const Real g = c1 * mean + c2 * linear.gradient[j] * square;
        const Real moved = scale * (g - along * linear.raw[j]);
        change[place + j] = moved;
        earlier.theta[place + j] = kept * theta + l2 * moved + coupled * g;
        earlier.mean[place + j] = b1 * mean;
        earlier.square[place + j] = b2 * square;
        sum += only_dots ? static_cast<double>(g * linear.raw[j]) : 0.0;
      }
      if (only_dots) dots[line] += sum;
    }
  }
}

template <typename Real>
constexpr int64_t padded(int64_t size) {
  return blocks(size, kWidth<Real>) * kWidth<Real>;
}

// Rows with zeros behind them, up to `stride`.
template <typename Real>
void copy_rows(const Real* from, int64_t from_stride, int64_t rows, int64_t columns, Real* to,
               int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[i * stride + j] = from[i * from_stride + j];
    for (int64_t j = columns; j < stride; ++j) to[i * stride + j] = Real(0);
  }
}

// from [rows, columns] turned, its rows then `stride` apart with zeros behind them.
template <typename Real>
void turned(const Real* from, int64_t from_stride, int64_t rows, int64_t columns, Real* to,
            int64_t stride) {
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = rows; j < stride; ++j) to[i * stride + j] = Real(0);
  }
  turn(from, from_stride, rows, columns, to, stride);
}

// A matrix [rows, columns] as the wide factor of a product: where it is, or a copy with zeros.
template <typename Real>
struct Wide {
  const Real* data;
  int64_t stride;

  Wide(const Real* from, int64_t rows, int64_t columns, Scratch<Real>& scratch)
      : data(from), stride(padded<Real>(columns)) {
    if (stride == columns) return;
    Real* to = scratch.get(rows * stride);
    copy_rows(from, columns, rows, columns, to, stride);
    data = to;
  }
};

// to [count, columns] without gaps = rows · wide, whose rows are padded.
template <typename Real>
void product(Strided<Real> rows, int64_t count, int64_t depth, const Real* wide,
             int64_t wide_stride, int64_t columns, Real* to, Scratch<Real>& scratch) {
  const int64_t stride = padded<Real>(columns);
  if (stride == columns) {
    multiply<Real>(rows, count, depth, wide, wide_stride, columns, false, to, columns);
    return;
  }
  Real* spare = scratch.get(count * stride);
  multiply<Real>(rows, count, depth, wide, wide_stride, stride, false, spare, stride);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[i * columns + j] = spare[i * stride + j];
  }
}

template <typename Real>
void project(const SketchedMatrix* matrices, int64_t begin, int64_t end, const Real* factors,
             const Real* vectors, int64_t k, int64_t d, int64_t p, Real* out) {
  Scratch<Real> wide_scratch, spare;
  for (const SketchedMatrix* m = matrices + begin; m < matrices + end; ++m) {
    const Real* factor = factors + m->factor;
    const int64_t stride = padded<Real>(m->count);
    if (!m->is_b)
      turned(factor, m->columns, m->count, m->columns, wide_scratch.get(m->columns * stride),
             stride);
    for (int64_t line = 0; line < k; ++line) {
      const Real* from = vectors + line * d + m->flat;
      Real* to = out + line * p + m->sketch;
      if (m->is_b) {
        const Wide<Real> wide(from, m->rows, m->columns, wide_scratch);
        product<Real>({factor, m->rows, 1}, m->count, m->rows, wide.data, wide.stride, m->columns,
                      to, spare);
      } else {
        product<Real>({from, m->columns, 1}, m->rows, m->columns, wide_scratch.get(0), stride,
                      m->count, to, spare);
      }
    }
  }
}

template <typename Real>
void lift(const SketchedMatrix* matrices, int64_t begin, int64_t end, const Real* factors,
          const Real* sketches, int64_t k, int64_t d, int64_t p, Real* out) {
  Scratch<Real> wide_scratch, spare;
  for (const SketchedMatrix* m = matrices + begin; m < matrices + end; ++m) {
    const Real* factor = factors + m->factor;
    for (int64_t line = 0; line < k; ++line) {
      const Real* from = sketches + line * p + m->sketch;
      Real* to = out + line * d + m->flat;
      const Wide<Real> wide(m->is_b ? from : factor, m->count, m->columns, wide_scratch);
      const Strided<Real> rows =
          m->is_b ? Strided<Real>{factor, 1, m->rows} : Strided<Real>{from, m->count, 1};
      product<Real>(rows, m->rows, m->count, wide.data, wide.stride, m->columns, to, spare);
    }
  }
}

// Visits the layers begin .. end with where their inverses lie.
template <typename Real, typename Visit>
void for_layers(const LoraPoint<Real>& point, int64_t begin, int64_t end, Visit visit) {
  int64_t inverse = 0;
  for (int64_t i = 0; i < end; ++i) {
    const LoraLayer& layer = point.layers[i];
    if (i >= begin) visit(layer, point.inverse_a + inverse, point.inverse_b + inverse);
    inverse += layer.rank * layer.rank;
  }
}

// to [rank, padded rank] = x Aᵀ (A Aᵀ)⁻¹ for x [rank, in], `turned_a` being Aᵀ.
template <typename Real>
void in_row_space(const LoraLayer& layer, const Real* x, const Real* turned_a, const Real* inverse,
                  Real* middle, Real* to) {
  const int64_t rank = layer.rank, width = padded<Real>(rank);
  multiply<Real>({x, layer.in, 1}, rank, layer.in, turned_a, width, width, false, middle, width);
  multiply<Real>({middle, width, 1}, rank, rank, inverse, width, width, false, to, width);
}

// to [rank, row] = x - x Aᵀ (A Aᵀ)⁻¹ A, `by` being the factor before A, whose rows are `row` apart.
template <typename Real>
void outside_row_space(const LoraLayer& layer, const Real* x, const Real* by, const Real* a,
                       int64_t row, Real* to) {
  const int64_t rank = layer.rank, width = padded<Real>(rank);
  multiply<Real>({by, width, 1}, rank, rank, a, row, row, false, to, row);
  for (int64_t i = 0; i < rank; ++i) {
    for (int64_t j = 0; j < layer.in; ++j) to[i * row + j] = x[i * layer.in + j] - to[i * row + j];
  }
}

// to [rows, columns] += from, whose rows are `stride` apart.
template <typename Real>
void add_rows(const Real* from, int64_t stride, int64_t rows, int64_t columns, Real* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[i * columns + j] += from[i * stride + j];
  }
}

// Memory of a layer, handed out piece by piece.
template <typename Real>
struct Pieces {
  Real* next;
  Real* operator()(int64_t size) { return (next += size) - size; }
};

template <typename Real>
void seen(const LoraPoint<Real>& point, int64_t begin, int64_t end, const Real* shifts, int64_t k,
          Real* out) {
  Scratch<Real> scratch;
  for_layers(
      point, begin, end, [&](const LoraLayer& layer, const Real* inverse_a, const Real* inverse_b) {
        const int64_t rank = layer.rank, in = layer.in;
        const int64_t width = padded<Real>(rank), row = padded<Real>(in);
        const Real *a = point.theta + layer.a, *b = point.theta + layer.b;
        Pieces<Real> take{scratch.get((in + 2 * layer.out + 5 * rank) * width + 3 * rank * row)};
        Real *turned_a = take(in * width), *wide_a = take(rank * row);
        Real *inverse = take(rank * width), *middle = take(rank * width), *by = take(rank * width);
        Real *moved = take(layer.out * width), *wide_b = take(layer.out * width);
        Real *small = take(rank * width), *inner = take(rank * width);
        Real *outside = take(rank * row), *added = take(rank * row);
        turned(a, in, rank, in, turned_a, width);
        copy_rows(a, in, rank, in, wide_a, row);
        copy_rows(inverse_a, rank, rank, rank, inverse, width);
        for (int64_t line = 0; line < k; ++line) {
          const Real *of_a = shifts + line * point.d + layer.a,
                     *of_b = shifts + line * point.d + layer.b;
          Real* found = out + line * point.d;
          // b a A⁺, through B's gradient.
          in_row_space(layer, of_a, turned_a, inverse, middle, by);
          multiply<Real>({of_b, rank, 1}, layer.out, rank, by, width, width, false, moved, width);
          add_rows(moved, width, layer.out, rank, found + layer.b);
          // (Bᵀ B)⁺ Bᵀ b of what of a is outside of A's row space, through A's.
          outside_row_space(layer, of_a, by, wide_a, row, outside);
          copy_rows(of_b, rank, layer.out, rank, wide_b, width);
          multiply<Real>({b, 1, rank}, rank, layer.out, wide_b, width, width, false, small, width);
          multiply<Real>({inverse_b, rank, 1}, rank, rank, small, width, width, false, inner,
                         width);
          multiply<Real>({inner, width, 1}, rank, rank, outside, row, row, false, added, row);
          add_rows(added, row, rank, in, found + layer.a);
        }
      });
}

// With Ĝ = U A + B V: left [out, 2 rank] is [U | B], right [2 rank, in] is [A; V].
template <typename Real>
void views(const LoraPoint<Real>& point, int64_t begin, int64_t end, const Real* total,
           int64_t stride, const Real* shifts, int64_t k, Real* out) {
  Scratch<Real> scratch, spare;
  for_layers(
      point, begin, end, [&](const LoraLayer& layer, const Real* inverse_a, const Real* inverse_b) {
        const int64_t rank = layer.rank, in = layer.in, twice = 2 * rank;
        const int64_t width = padded<Real>(rank), wide = padded<Real>(twice),
                      row = padded<Real>(in);
        const Real *a = point.theta + layer.a, *b = point.theta + layer.b;
        Pieces<Real> take{scratch.get((in + 4 * rank) * width + layer.out * wide + 3 * rank * row +
                                      in * wide + rank * wide + twice * width)};
        Real *turned_a = take(in * width), *inverse = take(rank * width),
             *middle = take(rank * width);
        Real *by = take(2 * rank * width), *left = take(layer.out * wide),
             *right = take(twice * row);
        Real *outside = take(rank * row), *turned_right = take(in * wide),
             *small = take(rank * wide);
        Real* turned_small = take(twice * width);

        turned(a, in, rank, in, turned_a, width);
        copy_rows(inverse_a, rank, rank, rank, inverse, width);
        copy_rows(a, in, rank, in, right, row);
        const auto prepare = [&](const Real* views) {
          in_row_space(layer, views + layer.a, turned_a, inverse, middle, by);
          outside_row_space(layer, views + layer.a, by, right, row, outside);
          multiply<Real>({inverse_b, rank, 1}, rank, rank, outside, row, row, false,
                         right + rank * row, row);
          multiply<Real>({views + layer.b, rank, 1}, layer.out, rank, inverse, width, width, false,
                         left, wide);
          for (int64_t i = 0; i < layer.out; ++i) {
            Real* to = left + i * wide;
            for (int64_t j = 0; j < rank; ++j) to[rank + j] = b[i * rank + j];
            for (int64_t j = twice; j < wide; ++j) to[j] = Real(0);
          }
          turned(right, row, twice, in, turned_right, wide);
        };
        for (int64_t line = 0; line < k; ++line) {
          if (line == 0 || stride != 0) prepare(total + line * stride);
          const Real *to_a = shifts + line * point.d + layer.a,
                     *to_b = shifts + line * point.d + layer.b;
          Real* found = out + line * point.d;
          multiply<Real>({to_b, 1, rank}, rank, layer.out, left, wide, wide, false, small, wide);
          product<Real>({small, wide, 1}, rank, twice, right, row, in, found + layer.a, spare);
          multiply<Real>({to_a, in, 1}, rank, in, turned_right, wide, wide, false, small, wide);
          turned(small, wide, rank, twice, turned_small, width);
          product<Real>({left, wide, 1}, layer.out, twice, turned_small, width, rank,
                        found + layer.b, spare);
        }
      });
}

template <typename Real>
constexpr UnrollKernels<Real> kernels() {
  return {clipping<Real>, move<Real>, tangent<Real>, transposed<Real>,
          project<Real>,  lift<Real>, seen<Real>,    views<Real>};
}

}  // namespace

const UnrollTable unroll = {kernels<float>(), kernels<double>()};

}  // namespace fudlr::FUDLR_ISA
