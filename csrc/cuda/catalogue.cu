// Launches the catalogue kernels: picks parts and grids, by the sizes alone.
#include <utility>

#include "cuda/catalogue.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kMostBlocks = 1 << 30;
constexpr int64_t kBlocksWanted = 512;  // about four for each multiprocessor of an H100
constexpr int64_t kMostTiles = 64;      // of a part, whose sums are kept in Real

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }
unsigned grid(int64_t units) {
  return static_cast<unsigned>(units < kMostBlocks ? units : kMostBlocks);
}

// Calls run(In{}) for the items' type.
template <typename Run>
auto dispatch(const Catalogue& c, Run run) {
  switch (c.number) {
    case Number::f64:
      return run(double{});
    case Number::bf16:
      return run(Bf16{});
    case Number::f16:
      return run(Half{});
    default:
      return run(float{});
  }
}

// Equal parts of the other side's tiles: enough blocks for the device, none too long.
struct Parts {
  int64_t count, length;
};
Parts parts_of(int64_t rows, int64_t others) {
  const int64_t tiles = blocks(others, kSide);
  const int64_t wanted = blocks(kBlocksWanted, most(blocks(rows, kSide), 1));
  const int64_t count = most(1, most(least(wanted, blocks(tiles, 4)), blocks(tiles, kMostTiles)));
  const int64_t length = blocks(tiles, count) * kSide;
  return {most(1, blocks(others, length)), length};
}

struct Side {
  int64_t rows, others, columns;
};
Side side_of(const Catalogue& c, int64_t columns, Gradient of) {
  if (of == Gradient::users) return {c.n, c.m, c.width};
  return {c.m, c.n, of == Gradient::items ? c.width : columns};
}

template <typename Real>
Pulled<Real> pulled(const Catalogue& c, const Cotangents& from) {
  return {{static_cast<const Real*>(from.weights), from.c, c.n, from.c},
          {static_cast<const Real*>(from.values), from.c, c.m, from.c},
          static_cast<const Real*>(from.shift),
          static_cast<const Real*>(from.lse),
          from.targets};
}

template <typename In, Gradient kOf, typename Out>
const char* gradient(const Catalogue& c, const Cotangents& from, void* work, void* to,
                     void* stream) {
  using Real = Sum<In>;
  const Side side = side_of(c, from.c, kOf);
  const Parts parts = parts_of(side.rows, side.others);
  FUDLR_LAUNCH((catalogue_gradient_kernel<In, kOf>), grid(blocks(side.rows, kSide) * parts.count),
               kTileThreads, 0, stream, c, pulled<Real>(c, from), parts.count, parts.length,
               static_cast<Real*>(work));
  if (const char* error = launch_error()) return error;
  const int64_t size = side.rows * side.columns;
  FUDLR_LAUNCH((catalogue_gradient_finish_kernel<Real, Out>), grid(blocks(size, 256)), 256, 0,
               stream, c.bad, static_cast<const Real*>(work), parts.count, size,
               kOf == Gradient::values ? 1.0 : c.scale, static_cast<Out*>(to));
  return launch_error();
}

int64_t chunk_items(int64_t k) { return most(kItemChunk, blocks(k, kSide) * kSide); }

}  // namespace

const char* check_seen(const int64_t* offsets, int64_t n, const int64_t* items, int64_t listed,
                       int64_t m, int* bad, void* stream) {
  const int64_t size = most(n + 1, listed);
  FUDLR_LAUNCH((check_seen_kernel), 1, static_cast<unsigned>(least(1024, blocks(size, 32) * 32)), 0,
               stream, offsets, n, items, listed, m, bad);
  return launch_error();
}

int64_t mean_states(const Catalogue& c) { return blocks(c.m, kItemChunk) * c.n; }

const char* catalogue_mean(const Catalogue& c, const void* values, int64_t columns,
                           void* states_work, void* sums_work, void* mean, void* lse,
                           void* stream) {
  return dispatch(c, [&](auto in) {
    using In = decltype(in);
    using Real = Sum<In>;
    const int64_t chunks = blocks(c.m, kItemChunk);
    const Matrix<Real> all{static_cast<const Real*>(values), columns, c.m, columns};
    FUDLR_LAUNCH((catalogue_mean_kernel<In>), grid(blocks(c.n, kSide) * chunks), kTileThreads, 0,
                 stream, c, all, static_cast<Real*>(states_work), static_cast<Real*>(sums_work));
    if (const char* error = launch_error()) return error;
    FUDLR_LAUNCH((catalogue_mean_finish_kernel<Real>), grid(blocks(c.n * (columns + 1), 256)), 256,
                 0, stream, c.bad, static_cast<const Real*>(states_work),
                 static_cast<const Real*>(sums_work), chunks, c.n, columns,
                 static_cast<Real*>(mean), static_cast<Real*>(lse));
    return launch_error();
  });
}

int64_t gradient_work(const Catalogue& c, int64_t columns, Gradient of) {
  const Side side = side_of(c, columns, of);
  return parts_of(side.rows, side.others).count * side.rows * side.columns;
}

const char* catalogue_gradient(const Catalogue& c, const Cotangents& from, Gradient of, void* work,
                               void* to, void* stream) {
  return dispatch(c, [&](auto in) {
    using In = decltype(in);
    using Real = Sum<In>;
    switch (of) {
      case Gradient::users:
        return gradient<In, Gradient::users, Real>(c, from, work, to, stream);
      case Gradient::items:
        return gradient<In, Gradient::items, In>(c, from, work, to, stream);
      default:
        return gradient<In, Gradient::values, Real>(c, from, work, to, stream);
    }
  });
}

// Two halves: lists are merged from one to the other.
int64_t top_work(const Catalogue& c, int64_t k) {
  const int64_t chunks = blocks(c.m, chunk_items(k));
  return chunks == 1 ? 0 : 2 * chunks * c.n * k;
}

const char* catalogue_top(const Catalogue& c, int64_t k, void* scores_work, int64_t* places_work,
                          void* scores, int64_t* places, void* stream) {
  return dispatch(c, [&](auto in) {
    using In = decltype(in);
    using Real = Sum<In>;
    int64_t lists = blocks(c.m, chunk_items(k));
    const int64_t half = lists * c.n * k;
    Real* from = static_cast<Real*>(lists == 1 ? scores : scores_work);
    int64_t* from_places = lists == 1 ? places : places_work;
    FUDLR_LAUNCH((catalogue_top_kernel<In>), grid(blocks(c.n, kSide) * lists), kTileThreads, 0,
                 stream, c, k, chunk_items(k), from, from_places);
    const char* error = launch_error();
    Real* to = static_cast<Real*>(scores_work) + half;
    int64_t* to_places = places_work + half;
    for (; lists > 1 && error == nullptr; lists = blocks(lists, 2)) {
      if (lists == 2) {
        to = static_cast<Real*>(scores);
        to_places = places;
      }
      FUDLR_LAUNCH((catalogue_merge_kernel<Real>), grid(blocks(lists * c.n * k, 256)), 256, 0,
                   stream, c.bad, lists, c.n, k, static_cast<const Real*>(from),
                   static_cast<const int64_t*>(from_places), to, to_places);
      error = launch_error();
      std::swap(from, to);
      std::swap(from_places, to_places);
    }
    return error;
  });
}

}  // namespace fudlr::gpu
