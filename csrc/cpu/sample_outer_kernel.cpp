// G_i = Σ_t narrow_t wide_tᵀ, tile by tile. A tile is kRows narrow rows × kVectors vectors of wide
// columns: its sums stay in registers over all positions of a sample, each position costing
// kVectors loads, kRows broadcasts and kRows · kVectors fused multiply-adds, so that the adders and
// not the loads are the limit. A finished tile goes to a buffer of a few hundred numbers, and from
// there to its use: copied out (grads), multiplied with the same tile of every vector (dots), or
// added to a running sum (sum). [n, a, b] never exists unless it is asked for.
//
// Every number is the sum of the same terms in the same order whatever the batch and the threads.
#include "cpu/sample_outer_kernel.h"

#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kGroup = 4;        // samples whose tiles meet a vector's tile while it is in L1
constexpr int64_t kChunk = 128;      // positions that `sum` adds up before they join the total
constexpr int64_t kWeightBlock = 8;  // weightings that `sum` scales a chunk for at once

// Where a tile lies in G, and how wide its rows are in a buffer.
struct Place {
  int64_t row, rows;        // narrow
  int64_t column, columns;  // wide
  int64_t padded;           // columns, rounded up to whole vectors
};

template <typename Real>
Place panel_at(int64_t panel, int64_t wide) {
  const int64_t column = panel * kColumns<Real>;
  const int64_t columns = min(kColumns<Real>, wide - column);
  return {0, 0, column, columns, blocks(columns, kWidth<Real>) * kWidth<Real>};
}

// Calls visit(place) for the tiles of one panel.
template <typename Visit>
void for_rows(Place place, int64_t narrow, Visit visit) {
  for (place.row = 0; place.row < narrow; place.row += kRows) {
    place.rows = min(kRows, narrow - place.row);
    visit(place);
  }
}

template <typename Real>
int64_t panels(int64_t wide) {
  return blocks(wide, kColumns<Real>);
}

// One sample's factors, read as Real.
template <typename In, typename Real>
class SampleView {
 public:
  void set(const Samples<In>& samples, int64_t i) {
    samples_ = &samples;
    first_ = samples.offsets[i];
    count_ = samples.offsets[i + 1] - first_;
    const Factor<In>& narrow = samples.narrow;
    narrow_.set(narrow.data + first_ * narrow.stride, narrow.stride, count_, narrow.size,
                narrow.size);
  }
  void set_panel(const Place& place) {
    const Factor<In>& wide = samples_->wide;
    wide_.set(wide.data + first_ * wide.stride + place.column, wide.stride, count_, place.columns,
              place.padded);
  }
  void outer_tile(const Place& place, Real* tile) {
    const bool again = place.row + place.rows < samples_->narrow.size;
    wide_.outer_tile(narrow_.data() + place.row, narrow_.stride(), place.rows, again, tile);
  }

 private:
  const Samples<In>* samples_ = nullptr;
  int64_t first_ = 0;
  int64_t count_ = 0;
  Panel<In, Real> narrow_;
  Panel<In, Real> wide_;
};

// Calls use(target, source) on every number of a tile and its place in a matrix.
template <typename Real, typename Use>
inline void for_elements(const Place& place, const Real* tile, Real* matrix, int64_t narrow_stride,
                         int64_t wide_stride, Use use) {
  Real* corner = matrix + place.row * narrow_stride + place.column * wide_stride;
  if (wide_stride == 1) {
    for (int64_t i = 0; i < place.rows; ++i) {
      for (int64_t j = 0; j < place.columns; ++j) {
        use(corner[i * narrow_stride + j], tile[i * place.padded + j]);
      }
    }
  } else {
    for (int64_t j = 0; j < place.columns; ++j) {
      for (int64_t i = 0; i < place.rows; ++i) {
        use(corner[j * wide_stride + i * narrow_stride], tile[i * place.padded + j]);
      }
    }
  }
}

template <typename In, typename Real>
void grads(const Samples<In>& samples, int64_t begin, int64_t end, Matrices<Real> grads) {
  SampleView<In, Real> view;
  alignas(64) Real tile[kTile<Real>];
  for (int64_t i = begin; i < end; ++i) {
    view.set(samples, i);
    for (int64_t p = 0; p < panels<Real>(samples.wide.size); ++p) {
      const Place panel = panel_at<Real>(p, samples.wide.size);
      view.set_panel(panel);
      for_rows(panel, samples.narrow.size, [&](const Place& place) {
        view.outer_tile(place, tile);
        for_elements(place, tile, grads.data + i * grads.stack, grads.narrow, grads.wide,
                     [](Real& to, Real from) { to = from; });
      });
    }
  }
}

template <typename Real>
int64_t packed_size(int64_t narrow, int64_t wide, int64_t k) {
  return panels<Real>(wide) * blocks(narrow, kRows) * kTile<Real> * k;
}

// The k vectors' tiles for one place follow each other, so that `dots` reads memory in order.
template <typename Real>
void pack(Matrices<const Real> vectors, int64_t narrow, int64_t wide, int64_t k, Real* packed) {
  for (int64_t p = 0; p < panels<Real>(wide); ++p) {
    for_rows(panel_at<Real>(p, wide), narrow, [&](const Place& place) {
      for (int64_t v = 0; v < k; ++v) {
        const Real* from = vectors.data + v * vectors.stack + place.row * vectors.narrow +
                           place.column * vectors.wide;
        for (int64_t i = 0; i < place.rows; ++i) {
          for (int64_t j = 0; j < place.padded; ++j) {
            *packed++ = j < place.columns ? from[i * vectors.narrow + j * vectors.wide] : Real(0);
          }
        }
      }
    });
  }
}

// sums[s][v] += tiles[s] · vectors[v], lane by lane, for S tiles and V vectors of `size` numbers.
template <typename Real, int S, int V>
inline void reduce(const Real* tiles, const Real* vectors, int64_t size, int64_t k, Real* sums) {
  Vector<Real> sum[S][V];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[s][v] = load(sums + (s * k + v) * kWidth<Real>);
  }
  for (int64_t j = 0; j < size; j += kWidth<Real>) {
    Vector<Real> vector[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) vector[v] = load(vectors + v * size + j);
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const Vector<Real> tile = load(tiles + s * kTile<Real> + j);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[s][v] += tile * vector[v];
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + (s * k + v) * kWidth<Real>, sum[s][v]);
  }
}

template <typename Real, int S>
void reduce_all(const Real* tiles, const Real* vectors, int64_t size, int64_t k, Real* sums) {
  int64_t v = 0;
  for (; v + 2 <= k; v += 2) {
    reduce<Real, S, 2>(tiles, vectors + v * size, size, k, sums + v * kWidth<Real>);
  }
  if (v < k) reduce<Real, S, 1>(tiles, vectors + v * size, size, k, sums + v * kWidth<Real>);
}

template <typename In, typename Real>
void dots(const Samples<In>& samples, int64_t begin, int64_t end, const Real* packed, int64_t k,
          Real* dots) {
  SampleView<In, Real> views[kGroup];
  Scratch<Real> lanes;
  alignas(64) Real tiles[kGroup * kTile<Real>];
  Real* sums = lanes.get(kGroup * k * kWidth<Real>);
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t group = min(kGroup, end - first);
    for (int64_t s = 0; s < group; ++s) views[s].set(samples, first + s);
    for (int64_t j = 0; j < kGroup * k * kWidth<Real>; ++j) sums[j] = Real(0);
    const Real* vectors = packed;
    for (int64_t p = 0; p < panels<Real>(samples.wide.size); ++p) {
      const Place panel = panel_at<Real>(p, samples.wide.size);
      for (int64_t s = 0; s < group; ++s) views[s].set_panel(panel);
      for_rows(panel, samples.narrow.size, [&](const Place& place) {
        const int64_t size = place.rows * place.padded;
        for (int64_t s = 0; s < group; ++s) views[s].outer_tile(place, tiles + s * kTile<Real>);
        if (group == kGroup) {
          reduce_all<Real, kGroup>(tiles, vectors, size, k, sums);
        } else {
          for (int64_t s = 0; s < group; ++s) {
            reduce_all<Real, 1>(tiles + s * kTile<Real>, vectors, size, k,
                                sums + s * k * kWidth<Real>);
          }
        }
        vectors += k * size;
      });
    }
    for (int64_t j = 0; j < group * k; ++j) {
      Real sum = 0;
      for (int64_t lane = 0; lane < kWidth<Real>; ++lane) sum += sums[j * kWidth<Real> + lane];
      dots[first * k + j] = sum;
    }
  }
}

// Σ_i w_i G_i is one product over all positions once each narrow row carries its sample's weight.
// Positions are taken in chunks of a fixed size, whose sums join the total one after the other.
template <typename In, typename Real>
void sum(const Samples<In>& samples, int64_t n, const Real* weights, int64_t count, int64_t begin,
         int64_t end, Matrices<Real> sums) {
  const int64_t narrow = samples.narrow.size;
  const int64_t last = samples.offsets[n];
  Scratch<Real> scratch;
  Panel<In, Real> wide;
  alignas(64) Real tile[kTile<Real>];
  for (int64_t block = 0; block < count; block += kWeightBlock) {
    const int64_t used = min(kWeightBlock, count - block);
    Real* scaled = scratch.get(used * kChunk * narrow);
    int64_t sample = 0;
    for (int64_t start = samples.offsets[0]; start < last; start += kChunk) {
      const int64_t rows = min(kChunk, last - start);
      for (int64_t t = 0; t < rows; ++t) {
        while (samples.offsets[sample + 1] <= start + t) ++sample;
        const In* from = samples.narrow.data + (start + t) * samples.narrow.stride;
        for (int64_t m = 0; m < used; ++m) {
          const Real weight = weights[(block + m) * n + sample];
          Real* to = scaled + (m * kChunk + t) * narrow;
          for (int64_t i = 0; i < narrow; ++i) to[i] = weight * widen(from[i]);
        }
      }
      for (int64_t p = begin; p < end; ++p) {
        const Place panel = panel_at<Real>(p, samples.wide.size);
        wide.set(samples.wide.data + start * samples.wide.stride + panel.column,
                 samples.wide.stride, rows, panel.columns, panel.padded);
        for_rows(panel, narrow, [&](const Place& place) {
          for (int64_t m = 0; m < used; ++m) {
            const bool again = m + 1 < used || place.row + place.rows < narrow;
            wide.outer_tile(scaled + m * kChunk * narrow + place.row, narrow, place.rows, again,
                            tile);
            for_elements(place, tile, sums.data + (block + m) * sums.stack, sums.narrow, sums.wide,
                         [](Real& to, Real from) { to += from; });
          }
        });
      }
    }
  }
}

template <typename In, typename Real>
constexpr SampleOuterKernels<In, Real> kernels() {
  return {grads<In, Real>, packed_size<Real>, pack<Real>,
          dots<In, Real>,  panels<Real>,      sum<In, Real>};
}

}  // namespace

const SampleOuterTable sample_outer = {kernels<float, float>(), kernels<double, double>(),
                                       kernels<Bfloat16, float>()};

}  // namespace fudlr::FUDLR_ISA
