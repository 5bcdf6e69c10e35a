// A sample's positions are projected, and their outer products summed, while they are in L1.
// Positions before the first and behind the last whose left factor, the gradient, is not 0 are left
// out: padding, and all but the last where a layer's other outputs lead nowhere.
#include "cpu/sketch_kernel.h"

#include "cpu/row_products_kernel.h"
#include "cpu/transpose.h"

namespace fudlr::FUDLR_ISA {
namespace {

template <typename Real>
bool is_zero(const Real* row, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    if (row[i] != 0) return false;
  }
  return true;
}

template <typename Real>
int64_t padded(int64_t size) {
  return blocks(size, kWidth<Real>) * kWidth<Real>;
}

template <typename Real>
void sketch_samples(const SketchTask<Real>& task, int64_t begin, int64_t end, Real* rows,
                    int64_t stride) {
  const Factor<Real>&wide = task.of_left ? task.left : task.right,
        &narrow = task.of_left ? task.right : task.left;
  const int64_t width = padded<Real>(task.count), columns = padded<Real>(narrow.size);
  Scratch<Real> turned_scratch, projected_scratch, narrow_scratch, tile_scratch;
  Real* directions = turned_scratch.get(wide.size * width);
  for (int64_t i = 0; i < wide.size * width; ++i) directions[i] = Real(0);
  turn(task.directions, wide.size, task.count, wide.size, directions, width);
  // Sketches have the projected side first where it is the left one.
  const int64_t tile_stride = task.of_left ? columns : width;
  Real* tile = tile_scratch.get((task.of_left ? task.count : narrow.size) * tile_stride);
  for (int64_t i = begin; i < end; ++i) {
    int64_t first = task.offsets[i], last = task.offsets[i + 1];
    const auto gone = [&](int64_t t) {
      return is_zero(task.left.data + t * task.left.stride, task.left.size);
    };
    while (first < last && gone(first)) ++first;
    while (first < last && gone(last - 1)) --last;
    const int64_t count = last - first;
    if (count == 0) continue;
    Real* projected = projected_scratch.get(count * width);
    multiply<Real>({wide.data + first * wide.stride, wide.stride, 1}, count, wide.size, directions,
                   width, width, false, projected, width);
    const Real* other = narrow.data + first * narrow.stride;
    if (!task.of_left) {
      multiply<Real>({other, 1, narrow.stride}, narrow.size, count, projected, width, width, false,
                     tile, width);
    } else {
      int64_t other_stride = narrow.stride;
      if (columns != narrow.size) {
        Real* copy = narrow_scratch.get(count * columns);
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t j = 0; j < columns; ++j) {
            copy[t * columns + j] = j < narrow.size ? other[t * other_stride + j] : Real(0);
          }
        }
        other = copy;
        other_stride = columns;
      }
      multiply<Real>({projected, 1, width}, task.count, count, other, other_stride, columns, false,
                     tile, columns);
    }
    Real* to = rows + i * stride;
    const int64_t high = task.of_left ? task.count : narrow.size;
    const int64_t across = task.of_left ? narrow.size : task.count;
    for (int64_t r = 0; r < high; ++r) {
      for (int64_t c = 0; c < across; ++c) to[r * across + c] += tile[r * tile_stride + c];
    }
  }
}

void encode(const float* rows, int64_t begin, int64_t end, int64_t p, int8_t* codes,
            float* scales) {
  const int64_t runs = blocks(p, kScaleBlock);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = i * p + run * kScaleBlock;
      const int64_t count = min(kScaleBlock, p - run * kScaleBlock);
      float largest = 0;
#pragma omp simd reduction(max : largest)
      for (int64_t j = 0; j < count; ++j) {
        const float size = __builtin_fabsf(rows[first + j]);
        largest = size > largest ? size : largest;
      }
      const float scale = largest / 127;
      scales[i * runs + run] = scale;
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
