// Launches the catalogue kernels: picks parts and grids, by the sizes alone.
#include "cuda/catalogue.cuh"
#include "cuda/launch.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kBlocksWanted = 512;  // about four for each multiprocessor of an H100
constexpr int64_t kMaxTiles = 64;       // of a part, whose sums are kept in Real

// Equal parts of the other side's tiles: enough blocks for the device, none too long.
struct Parts {
  int64_t count, length;
};
Parts parts_of(int64_t rows, int64_t others) {
  const int64_t tiles = blocks(others, kSide);
  const int64_t wanted = blocks(kBlocksWanted, max_of(blocks(rows, kSide), 1));
  const int64_t count =
      max_of(1, max_of(min_of(wanted, blocks(tiles, 4)), blocks(tiles, kMaxTiles)));
  const int64_t length = blocks(tiles, count) * kSide;
  return {max_of(1, blocks(others, length)), length};
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
          static_cast<const Real*>(from.lse)};
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

int64_t chunk_items(int64_t k) { return max_of(kItemChunk, blocks(k, kSide) * kSide); }

}  // namespace

const char* check_seen(const int64_t* offsets, int64_t n, const int64_t* items, int64_t listed,
                       int64_t m, int* bad, int64_t* keys, void* stream) {
  FUDLR_LAUNCH((check_seen_kernel), 1, whole_warps(max_of(n + 1, listed), 1024), 0, stream, offsets,
               n, items, listed, m, bad);
  if (const char* error = launch_error()) return error;
  if (listed == 0) return nullptr;
  FUDLR_LAUNCH((seen_keys_kernel), grid(blocks(listed, 256)), 256, 0, stream, offsets, n, items,
               listed, m, keys);
  return launch_error();
}

int64_t mean_states(const Catalogue& c) { return blocks(c.m, kItemChunk) * c.n; }

const char* catalogue_mean(const Catalogue& c, const void* values, int64_t columns,
                           void* states_work, void* sums_work, void* mean, void* lse,
                           void* stream) {
  return dispatch(c.number, [&](auto in) {
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
  return dispatch(c.number, [&](auto in) {
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

int64_t top_lists(const Catalogue& c, int64_t k) { return blocks(c.m, chunk_items(k)); }

const char* catalogue_top(const Catalogue& c, int64_t k, void* scores, int64_t* items,
                          void* stream) {
  return dispatch(c.number, [&](auto in) {
    using In = decltype(in);
    FUDLR_LAUNCH((catalogue_top_kernel<In>), grid(blocks(c.n, kSide) * top_lists(c, k)),
                 kTileThreads, 0, stream, c, k, chunk_items(k), static_cast<Sum<In>*>(scores),
                 items);
    return launch_error();
  });
}

}  // namespace fudlr::gpu
