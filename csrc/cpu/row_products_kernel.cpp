// d_i = V g_i for the rows of a tile, then S += Σ_i c_i g_iᵀ with c_i = w_i d_i while the tile is
// in L2. Numbers are turned to Real on the way into a register, both times: that costs less than a
// buffer of them would. Both products take a few rows × a few vectors at once, so that what is
// loaded of a vector, or of the sums, serves several rows: the first holds its sums in registers,
// the second its coefficients. Both meanwhile ask for the next tile, whose pages were asked for.
//
// The scale of an int8 block multiplies the block's part of d_i (its numbers, where registers are
// many), and c_i for the block: once every 128 columns.
//
// Every number is the sum of the same terms in the same order whatever the threads, the lines and
// the other rows: lanes over 1,024 columns in Real and from there in float64 for d, rows of a chunk
// one after the other for S.
#include "cpu/row_products_kernel.h"

#include "cpu/stored.h"
#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kDepth = 512;          // columns taken at once: their vectors or sums stay in L1
constexpr int64_t kTileBytes = 3 << 15;  // of stored rows; two tiles, vectors and sums fit L2
constexpr int64_t kManyRows = 24, kFewRows = 12;  // of a tile; multiples of the rows of a step
constexpr int kLines = 4;                         // vectors or sums that are taken at once

template <typename In>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<Int8> = true;

// Whether a number is scaled before it is multiplied, rather than its block's sum: registers for
// twice as many rows at once make up for that.
#if defined(__AVX512F__)
template <typename In>
constexpr bool kScaledFirst = kScaled<In>;
#else
template <typename In>
constexpr bool kScaledFirst = false;
#endif

// Memory to ask for while there is something else to do: `step` bytes further with every call, so
// that memory is as busy during the last product of a tile as during the first. Lines asked for at
// once would be waited for, and then memory would wait for the sums.
struct Ahead {
  const char* next = nullptr;
  const char* end = nullptr;
  int64_t step = 0;
};

// Neither product is inlined: the pointers of its inner loop would be left no registers.
#define FUDLR_APART __attribute__((noinline))

// dots[r][k] += <rows[r], vectors[k]> over `columns` columns, whole vectors of them, of R rows and
// K vectors; where the rows are scaled, with the scale of each block.
template <typename In, typename Real, int R, int K>
FUDLR_APART void dot_step(const In* rows, int64_t stride, int64_t columns, const float* scales,
                          int64_t scale_stride, const Real* vectors, int64_t vector_stride,
                          Ahead& ahead, Real* lanes, int64_t lane_stride) {
  const char* line = ahead.next;
  const int64_t line_step = line < ahead.end ? ahead.step : 0;
  const int64_t run = kScaled<In> ? kScaleBlock : columns;
  Vector<Real> sum[R][K];
  for (int64_t start = 0; start < columns; start += run) {
    const int64_t stop = min(start + run, columns);
    const float* scale = kScaled<In> ? scales + start / kScaleBlock : nullptr;
    if (!kScaledFirst<In> || start == 0) {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) sum[r][k] = Vector<Real>{};
      }
    }
    for (int64_t c = start; c < stop; c += kWidth<Real>) {
      Vector<Real> row[R];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        row[r] = fetch(rows + r * stride + c);
        if constexpr (kScaledFirst<In>) row[r] *= scale[r * scale_stride];
      }
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const Vector<Real> vector = load(vectors + k * vector_stride + c);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) sum[r][k] += row[r] * vector;
      }
      __builtin_prefetch(line, 0, 2);
      line += line_step;
    }
    if (kScaledFirst<In> && stop < columns) continue;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      Real factor = 1;
      if constexpr (kScaled<In> && !kScaledFirst<In>) factor = scale[r * scale_stride];
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        Real* total = lanes + r * lane_stride + k * kWidth<Real>;
        store(total, load(total) + factor * sum[r][k]);
      }
    }
  }
  ahead.next = line;
}

// Rows that a step takes with K vectors: as many as leave every sum a register.
constexpr int step_rows(int K) {
#if defined(__AVX512F__)
  constexpr int rows[] = {12, 6, 6, 6};
#else
  constexpr int rows[] = {6, 4, 4, 3};
#endif
  return rows[K - 1];
}

template <typename In, typename Real, int K>
void dot_rows(const In* rows, int64_t stride, int64_t count, int64_t columns, const float* scales,
              int64_t scale_stride, const Real* vectors, int64_t vector_stride, Ahead& ahead,
              Real* lanes, int64_t lane_stride) {
  constexpr int R = step_rows(K);
  int64_t t = 0;
  for (; t + R <= count; t += R) {
    dot_step<In, Real, R, K>(rows + t * stride, stride, columns, scales + t * scale_stride,
                             scale_stride, vectors, vector_stride, ahead, lanes + t * lane_stride,
                             lane_stride);
  }
  for (; t < count; ++t) {
    dot_step<In, Real, 1, K>(rows + t * stride, stride, columns, scales + t * scale_stride,
                             scale_stride, vectors, vector_stride, ahead, lanes + t * lane_stride,
                             lane_stride);
  }
}

// sums[k] += Σ_r coefs[r][k] rows[r] over `columns` columns, whole vectors of them, of R rows;
// where the rows are scaled, each block's coefficients lie `coef_block` after those of the one
// before.
template <typename In, typename Real, int R, int K>
FUDLR_APART void sum_step(const In* rows, int64_t stride, int64_t columns, const Real* coefs,
                          int64_t coef_stride, int64_t coef_block, Ahead& ahead, Real* sums,
                          int64_t sum_stride) {
  const char* line = ahead.next;
  const int64_t line_step = line < ahead.end ? ahead.step : 0;
  const int64_t run = kScaled<In> ? kScaleBlock : columns;
  for (int64_t start = 0; start < columns; start += run) {
    const int64_t stop = min(start + run, columns);
    Vector<Real> coef[R][K];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) coef[r][k] = coefs[r * coef_stride + k] - Vector<Real>{};
    }
    for (int64_t c = start; c < stop; c += kWidth<Real>) {
      Vector<Real> row[R];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) row[r] = fetch_wide(rows + r * stride + c);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        Real* to = sums + k * sum_stride + c;
        Vector<Real> sum = load(to);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) sum += coef[r][k] * row[r];
        store(to, sum);
      }
      __builtin_prefetch(line, 0, 2);
      line += line_step;
    }
    coefs += coef_block;
  }
  ahead.next = line;
}

template <typename In, typename Real, int K>
void sum_rows(const In* rows, int64_t stride, int64_t count, int64_t columns, const Real* coefs,
              int64_t coef_stride, int64_t coef_block, Ahead& ahead, Real* sums,
              int64_t sum_stride) {
  constexpr int R = step_rows(K);
  int64_t t = 0;
  for (; t + R <= count; t += R) {
    sum_step<In, Real, R, K>(rows + t * stride, stride, columns, coefs + t * coef_stride,
                             coef_stride, coef_block, ahead, sums, sum_stride);
  }
  for (; t < count; ++t) {
    sum_step<In, Real, 1, K>(rows + t * stride, stride, columns, coefs + t * coef_stride,
                             coef_stride, coef_block, ahead, sums, sum_stride);
  }
}

template <int K>
struct Lines {};

// Calls use(Lines<K>, first line) for blocks of at most kLines lines.
template <typename Use>
inline void for_lines(int64_t lines, Use use) {
  int64_t first = 0;
  for (; first + kLines <= lines; first += kLines) use(Lines<kLines>{}, first);
  switch (lines - first) {
    case 3:
      return use(Lines<3>{}, first);
    case 2:
      return use(Lines<2>{}, first);
    case 1:
      return use(Lines<1>{}, first);
  }
}

template <typename Real>
int64_t line_size(int64_t p) {
  // Lines a power of two apart would throw each other out of L1.
  return blocks(p, kWidth<Real>) * kWidth<Real> + 64 / static_cast<int64_t>(sizeof(Real));
}

template <typename Real>
void pack(const Real* vectors, int64_t stride, int64_t lines, int64_t p, Real* packed) {
  const int64_t size = line_size<Real>(p);
  for (int64_t k = 0; k < lines; ++k) {
    for (int64_t c = 0; c < p; ++c) packed[k * size + c] = vectors[k * stride + c];
    for (int64_t c = p; c < size; ++c) packed[k * size + c] = Real(0);
  }
}

// The rows of one tile, and their last columns, fewer than a vector, padded with zeros.
template <typename In, typename Real>
class Tile {
 public:
  explicit Tile(const StoredRows<In>& rows)
      : rows_(rows),
        whole_(rows.size / kWidth<Real> * kWidth<Real>),
        size_(line_size<Real>(rows.size)) {}

  static int64_t rows(int64_t p) {
    return p * static_cast<int64_t>(sizeof(In)) * kManyRows <= kTileBytes ? kManyRows : kFewRows;
  }

  void set(int64_t first, int64_t count, bool more, const RowTask<Real>& task) {
    data_ = rows_.data + first * rows_.stride;
    scales_ = kScaled<In> ? rows_.scales + first * rows_.scale_stride : nullptr;
    count_ = count;
    const char* next = reinterpret_cast<const char*>(data_ + count * rows_.stride);
    const int64_t bytes = count * rows_.stride * static_cast<int64_t>(sizeof(In));
    ahead_ = more ? Ahead{next, next + bytes, bytes / calls(task) + 1} : Ahead{};
    if (more && !kScaled<In>) ask_for_pages(next, bytes);  // int8's are few, and gain nothing
    const int64_t rest = rows_.size - whole_;
    if (rest == 0) return;
    for (int64_t t = 0; t < count; ++t) {
      const In* from = data_ + t * rows_.stride + whole_;
      for (int64_t c = 0; c < kWidth<Real>; ++c) {
        ends_[t * kWidth<Real> + c] = c < rest ? number(from[c]) : Real(0);
      }
      if constexpr (kScaled<In>) {
        const float scale = scales_[t * rows_.scale_stride + whole_ / kScaleBlock];
        for (int64_t c = 0; c < rest; ++c) ends_[t * kWidth<Real> + c] *= scale;
      }
    }
  }

  // dots[t][k] with all vectors; `lanes` holds a register for each.
  void dots(const RowTask<Real>& task, Real* lanes, Real* dots) {
    const int64_t k = task.lines;
    const int64_t lane_stride = k * kWidth<Real>;
    for (int64_t i = 0; i < count_ * lane_stride; ++i) lanes[i] = 0;
    for (int64_t start = 0; start < whole_; start += kDepth) {
      const int64_t columns = min(kDepth, whole_ - start);
      for_lines(k, [&]<int K>(Lines<K>, int64_t first) {
        dot_rows<In, Real, K>(data_ + start, rows_.stride, count_, columns,
                              kScaled<In> ? scales_ + start / kScaleBlock : scales_,
                              rows_.scale_stride, task.vectors + first * size_ + start, size_,
                              ahead_, lanes + first * kWidth<Real>, lane_stride);
      });
    }
    if (whole_ < rows_.size) {
      for_lines(k, [&]<int K>(Lines<K>, int64_t first) {
        dot_rows<Real, Real, K>(ends_, kWidth<Real>, count_, kWidth<Real>, nullptr, 0,
                                task.vectors + first * size_ + whole_, size_, ahead_,
                                lanes + first * kWidth<Real>, lane_stride);
      });
    }
    for (int64_t i = 0; i < count_ * k; ++i) dots[i] = lanes_sum(lanes + i * kWidth<Real>);
  }

  // sums[k] += Σ_t coefs[t][k] rows_t; `scaled` holds the coefficients of kDepth columns.
  void sums(int64_t k, const Real* coefs, Real* scaled, Real* sums) {
    const int64_t coef_block = kScaled<In> ? count_ * k : 0;
    for (int64_t start = 0; start < whole_; start += kDepth) {
      const int64_t columns = min(kDepth, whole_ - start);
      const Real* used = coefs;
      if constexpr (kScaled<In>) {
        Real* to = scaled;
        for (int64_t c = start; c < start + columns; c += kScaleBlock) {
          for (int64_t t = 0; t < count_; ++t, to += k) {
            const Real scale = scales_[t * rows_.scale_stride + c / kScaleBlock];
            for (int64_t j = 0; j < k; ++j) to[j] = scale * coefs[t * k + j];
          }
        }
        used = scaled;
      }
      for_lines(k, [&]<int K>(Lines<K>, int64_t first) {
        sum_rows<In, Real, K>(data_ + start, rows_.stride, count_, columns, used + first, k,
                              coef_block, ahead_, sums + first * size_ + start, size_);
      });
    }
    if (whole_ == rows_.size) return;
    for_lines(k, [&]<int K>(Lines<K>, int64_t first) {
      sum_rows<Real, Real, K>(ends_, kWidth<Real>, count_, kWidth<Real>, coefs + first, k, 0,
                              ahead_, sums + first * size_ + whole_, size_);
    });
  }

 private:
  // How often the task's products on the tile ask for memory, at least; see dot_step, sum_step.
  int64_t calls(const RowTask<Real>& task) const {
    const int64_t vectors = count_ * (whole_ / kWidth<Real>);
    int64_t found = 1;
    for_lines(task.lines, [&]<int K>(Lines<K>, int64_t) {
      if (task.vectors != nullptr) found += vectors / step_rows(K);
      if (task.sums) found += vectors / step_rows(K);
    });
    return found;
  }

  const StoredRows<In>& rows_;
  const int64_t whole_;  // columns that make up whole vectors
  const int64_t size_;   // of a line of vectors or sums
  const In* data_ = nullptr;
  const float* scales_ = nullptr;
  int64_t count_ = 0;
  Ahead ahead_;  // the next tile
  alignas(64) Real ends_[kManyRows * kWidth<Real>];
};

template <typename In, typename Real>
void chunk(const StoredRows<In>& rows, const RowTask<Real>& task, int64_t begin, int64_t end,
           Real* partial) {
  const int64_t k = task.lines;
  const int64_t tile_rows = Tile<In, Real>::rows(rows.size);
  Tile<In, Real> tile(rows);
  Scratch<Real> lane_scratch, coef_scratch;
  Real* lanes = lane_scratch.get(tile_rows * k * kWidth<Real>);
  Real* coefs = coef_scratch.get(2 * (1 + kDepth / kScaleBlock) * tile_rows * k);
  if (task.sums) {
    for (int64_t i = 0; i < k * line_size<Real>(rows.size); ++i) partial[i] = Real(0);
  }
  for (int64_t first = begin; first < end; first += tile_rows) {
    const int64_t count = min(tile_rows, end - first);
    tile.set(first, count, first + count + tile_rows <= rows.count, task);
    if (task.vectors != nullptr) {
      tile.dots(task, lanes, task.dots + first * k);
      for (int64_t i = 0; i < count * k; ++i) {
        const Real dot = task.dots[first * k + i];
        coefs[i] = task.weights != nullptr ? dot * task.weights[first + i / k] : dot;
      }
    } else {
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t j = 0; j < k; ++j) {
          coefs[t * k + j] = task.weights[j * task.weight_stride + first + t];
        }
      }
    }
    if (task.sums) tile.sums(k, coefs, coefs + tile_rows * k, partial);
  }
}

template <typename In, typename Real>
constexpr RowKernels<In, Real> kernels() {
  return {line_size<Real>, pack<Real>, chunk<In, Real>};
}

}  // namespace

const RowProductsTable row_products = {kernels<float, float>(), kernels<double, double>(),
                                       kernels<Bfloat16, float>(), kernels<Int8, float>()};

}  // namespace fudlr::FUDLR_ISA
