// Sketches of samples' gradients, while their factors are in L1: P left_t and their products with
// right_t where a sample has few positions, else its gradient, panel by panel, and P of that: r·w·T
// multiply-adds for T positions and a gradient [r, w], and r·w·q for q directions, in place of
// q·w·T + q·r·T. Positions before the first and behind the last whose left factor, the gradient, is
// not 0 are left out: padding, and all but the last where a layer's other outputs lead nowhere.
#include "cpu/sketch_kernel.h"

#include "cpu/row_products_kernel.h"
#include "cpu/transpose.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kPanel = 192;  // columns of a gradient that are projected while they are in L1
constexpr int64_t kGroup = 4;    // samples whose gradients meet a panel of directions together

template <typename Real>
int64_t padded(int64_t size) {
  return blocks(size, kWidth<Real>) * kWidth<Real>;
}

// Whether any number of four vectors is not 0, of either sign: their bits are or'd, signs left out.
template <typename Real>
bool any_bits(const Real* data) {
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr uint64_t kSizes = sizeof(Real) == 4 ? 0x7fffffff7fffffff : 0x7fffffffffffffff;
  Bits all{};
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    Bits some;
    std::memcpy(&some, data + v * kWidth<Real>, sizeof(some));
    all |= some;
  }
  uint64_t any = 0;
#pragma GCC unroll 8
  for (size_t j = 0; j < sizeof(all) / sizeof(any); ++j) any |= all[j];
  return (any & kSizes) != 0;
}

// How many numbers of `data` are 0 before any other, from the front or from the back.
template <typename Real, bool Front>
int64_t zeros(const Real* data, int64_t size) {
  constexpr int64_t kRun = 4 * kWidth<Real>;
  int64_t i = 0;
  while (i + kRun <= size && !any_bits(Front ? data + i : data + size - i - kRun)) i += kRun;
  while (i < size && data[Front ? i : size - 1 - i] == 0) ++i;
  return i;
}

// How many rows are 0 before any other, from the front or from the back.
template <typename Real, bool Front>
int64_t zero_rows(const Factor<Real>& factor, int64_t first, int64_t count) {
  const Real* data = factor.data + first * factor.stride;
  if (factor.stride == factor.size) {
    return factor.size == 0 ? count : zeros<Real, Front>(data, count * factor.size) / factor.size;
  }
  int64_t t = 0;
  const auto row = [&] { return data + (Front ? t : count - 1 - t) * factor.stride; };
  while (t < count && zeros<Real, true>(row(), factor.size) == factor.size) ++t;
  return t;
}

template <typename Real>
class Sketcher {
 public:
  Sketcher(const SketchTask<Real>& task, Real* rows, int64_t stride)
      : task_(task),
        wide_(task.of_left ? task.left : task.right),
        narrow_(task.of_left ? task.right : task.left),
        width_(padded<Real>(task.count)),
        rows_(rows),
        stride_(stride) {
    directions_ = turned_scratch_.get(wide_.size * width_);
    for (int64_t i = 0; i < wide_.size * width_; ++i) directions_[i] = Real(0);
    turn(task.directions, wide_.size, task.count, wide_.size, directions_, width_);
    tile_ = tile_scratch_.get(kGroup * narrow_.size * width_);
    sum_ = sum_scratch_.get(narrow_.size * task.count);
    gradient_ = gradient_scratch_.get(kGroup * narrow_.size * kPanel);
  }

  void add(int64_t sample) {
    int64_t first = task_.offsets[sample], count = task_.offsets[sample + 1] - first;
    const int64_t before = zero_rows<Real, true>(task_.left, first, count);
    first += before;
    count -= before;
    if (count == 0) return;
    count -= zero_rows<Real, false>(task_.left, first, count);
    const Span span{sample, first, count};
    if (narrow_.size * wide_.size * (count + width_) >=
        (wide_.size + narrow_.size) * width_ * count) {
      return project(span);
    }
    group_[grouped_++] = span;
    if (grouped_ == kGroup) flush();
  }

  // Asks for the numbers of `rows` that a sample is added to: they lie a page or more apart.
  void prefetch(int64_t sample) const {
    const Real* to = rows_ + sample * stride_;
    for (int64_t j = 0; j < narrow_.size * task_.count; j += 64 / sizeof(Real)) {
      __builtin_prefetch(to + j, 1);
    }
  }

  // Σ_t narrow_t (P wide_t)ᵀ as P (Σ_t narrow_t wide_tᵀ)ᵀ of the samples that wait for it.
  void flush() {
    const int64_t high = narrow_.size;
    for (int64_t column = 0; column < wide_.size && grouped_ > 0; column += kPanel) {
      const int64_t columns = min(kPanel, wide_.size - column), whole = padded<Real>(columns);
      for (int64_t s = 0; s < grouped_; ++s) {
        const Span& span = group_[s];
        int64_t stride = wide_.stride;
        const Real* from = wide_.data + span.first * stride + column;
        if (whole != columns) {
          from = whole_rows(from, span.count, columns, whole);
          stride = whole;
        }
        multiply<Real>(narrow(span), high, span.count, from, stride, whole, false,
                       gradient_ + s * high * kPanel, kPanel);
      }
      multiply<Real>({gradient_, kPanel, 1}, grouped_ * high, columns,
                     directions_ + column * width_, width_, width_, column > 0, tile_, width_);
    }
    for (int64_t s = 0; s < grouped_; ++s) put(group_[s].sample, tile_ + s * high * width_);
    grouped_ = 0;
  }

 private:
  struct Span {
    int64_t sample, first, count;
  };

  Strided<Real> narrow(const Span& span) const {
    return {narrow_.data + span.first * narrow_.stride, 1, narrow_.stride};
  }

  void project(const Span& span) {
    Real* projected = projected_scratch_.get(span.count * width_);
    multiply<Real>({wide_.data + span.first * wide_.stride, wide_.stride, 1}, span.count,
                   wide_.size, directions_, width_, width_, false, projected, width_);
    multiply<Real>(narrow(span), narrow_.size, span.count, projected, width_, width_, false, tile_,
                   width_);
    put(span.sample, tile_);
  }

  // A panel's rows side by side, filled up with zeros.
  const Real* whole_rows(const Real* from, int64_t count, int64_t columns, int64_t whole) {
    Real* to = projected_scratch_.get(count * whole);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t j = 0; j < whole; ++j) {
        to[t * whole + j] = j < columns ? from[t * wide_.stride + j] : Real(0);
      }
    }
    return to;
  }

  // Adds [narrow, count], the projected side first where it is the left one.
  void put(int64_t sample, const Real* tile) {
    const int64_t high = narrow_.size, across = task_.count;
    if (task_.of_left) {
      turn(tile, width_, high, across, sum_, high);
    } else {
      for (int64_t r = 0; r < high; ++r) {
        for (int64_t c = 0; c < across; ++c) sum_[r * across + c] = tile[r * width_ + c];
      }
    }
    Real* __restrict to = rows_ + sample * stride_;
    const Real* __restrict from = sum_;
    for (int64_t j = 0; j < high * across; ++j) to[j] += from[j];
  }

  const SketchTask<Real>& task_;
  const Factor<Real>& wide_;
  const Factor<Real>& narrow_;
  int64_t width_;  // directions, in whole vectors
  Real* rows_;
  int64_t stride_;
  Scratch<Real> turned_scratch_, tile_scratch_, sum_scratch_, gradient_scratch_, projected_scratch_;
  Real *directions_, *tile_, *sum_, *gradient_;
  Span group_[kGroup];
  int64_t grouped_ = 0;
};

template <typename Real>
void sketch_samples(const SketchTask<Real>& task, int64_t begin, int64_t end, Real* rows,
                    int64_t stride) {
  Sketcher<Real> sketcher(task, rows, stride);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kGroup < end) sketcher.prefetch(i + kGroup);
    sketcher.add(i);
  }
  sketcher.flush();
}

void encode(const float* rows, int64_t begin, int64_t end, int64_t p, int8_t* codes,
            float* scales) {
  const int64_t runs = blocks(p, kScaleBlock);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = i * p + run * kScaleBlock;
      const int64_t count = min(kScaleBlock, p - run * kScaleBlock);
      int32_t bits = 0;  // of the largest: they rank as sizes do, with NaN above all
#pragma omp simd reduction(max : bits)
      for (int64_t j = 0; j < count; ++j) {
        int32_t size;
        std::memcpy(&size, rows + first + j, sizeof(size));
        size &= 0x7fffffff;
        bits = size > bits ? size : bits;
      }
      float largest;
      std::memcpy(&largest, &bits, sizeof(largest));
      const float scale = largest / 127;
      scales[i * runs + run] = scale;
      if (!__builtin_isfinite(scale)) {
        std::memset(codes + first, 0, static_cast<size_t>(count));
        continue;
      }
      const float step = scale > 0 ? scale : 1.0f;  // a block of zeros keeps them
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        float code = __builtin_rintf(rows[first + j] / step);
        code = code > 127 ? 127 : code;
        codes[first + j] = static_cast<int8_t>(code < -127 ? -127 : code);
      }
    }
  }
}

}  // namespace

const SketchTable sketch = {{sketch_samples<float>}, {sketch_samples<double>}, encode};

}  // namespace fudlr::FUDLR_ISA
