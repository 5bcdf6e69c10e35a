// Launches the sample_outer kernels: picks tiles and grids, by the sizes alone.
#include "cuda/launch.cuh"
#include "cuda/sample_outer.cuh"
#include "cuda/sample_outer_mma.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kBlocksWanted = 1024;  // about eight for each multiprocessor of an H100
constexpr int64_t kMinPart = 256;        // positions of grad_sum that are worth a block

// Rows of a tile that the fused multiply-add kernels hold, by number and list of narrow rows.
int64_t tile_rows(Number number, int64_t rows) {
  return number == Number::f32 && rows > 8 ? 16 : 8;
}

bool on_tensor_cores(const Samples& s) {
  return (s.number == Number::bf16 || s.number == Number::f16) && s.narrow.size > 8;
}

int64_t number_bytes(Number number) {
  return number == Number::f64 ? 8 : number == Number::f32 ? 4 : 2;
}

// As many threads as there are vectors of columns, in whole warps, at most kThreads.
unsigned threads(const Samples& s) {
  return whole_warps(blocks(s.wide.size, 16 / number_bytes(s.number)), kThreads);
}

int64_t tiles(const Samples& s, int64_t rows) {
  if (on_tensor_cores(s)) return blocks(rows, 64) * blocks(s.wide.size, kMmaWide);
  const int64_t columns = threads(s) * (16 / number_bytes(s.number));
  return blocks(rows, tile_rows(s.number, rows)) * blocks(s.wide.size, columns);
}

int64_t slots(const Samples& s) { return s.positions / kChunk + s.n; }

// Tiles of grad_sum: (weighting, row) is one list, but on tensor cores, where a tile has one
// weight.
int64_t sum_tiles(const Samples& s, int64_t count) {
  if (!on_tensor_cores(s)) return tiles(s, count * s.narrow.size);
  return blocks(s.narrow.size, 32) * blocks(s.wide.size, kMmaWide);
}

// Equal parts of all positions: enough blocks for the device, none too short.
int64_t sum_parts(const Samples& s, int64_t count) {
  const int64_t units = sum_tiles(s, count) * (on_tensor_cores(s) ? count : 1);
  const int64_t wanted = blocks(kBlocksWanted, max_of(units, 1));
  return max_of(1, min_of(wanted, blocks(s.positions, kMinPart)));
}

// Calls run(In{}, Rows) with the narrow rows of a tile, or 0 for tensor cores, of a list of `rows`.
template <int N>
struct TileRows {
  static constexpr int value = N;
};
template <typename Run>
const char* launch(const Samples& s, int64_t rows, Run run) {
  dispatch(s.number, [&](auto in) {
    if constexpr (sizeof(in) == 2) {
      if (on_tensor_cores(s)) return run(in, TileRows<0>{});
    } else if constexpr (sizeof(in) == 4) {
      if (rows > 8) return run(in, TileRows<16>{});
    }
    run(in, TileRows<8>{});
  });
  return launch_error();
}

}  // namespace

const char* check_offsets(const int64_t* offsets, int64_t n, int64_t positions, int* bad,
                          void* stream) {
  FUDLR_LAUNCH((check_offsets_kernel), 1, whole_warps(n + 1, 1024), 0, stream, offsets, n,
               positions, bad);
  return launch_error();
}

const char* sample_grads(const Samples& s, const Stack& to, void* stream) {
  const int64_t count = tiles(s, s.narrow.size);
  return launch(s, s.narrow.size, [&](auto in, auto rows) {
    using In = decltype(in);
    constexpr int N = decltype(rows)::value;
    if constexpr (N == 0) {
      FUDLR_LAUNCH((sample_grads_mma_kernel<In, 4>), grid(s.n * count), kThreads, 0, stream, s,
                   count, to);
    } else {
      FUDLR_LAUNCH((sample_grads_kernel<In, N>), grid(s.n * count), threads(s), 0, stream, s, count,
                   to);
    }
  });
}

int64_t dots_work(const Samples& s, int64_t k) { return slots(s) * tiles(s, s.narrow.size) * k; }

const char* sample_dots(const Samples& s, const void* vectors, int64_t k, void* work, void* to,
                        void* stream) {
  const int64_t count = tiles(s, s.narrow.size);
  const char* error = launch(s, s.narrow.size, [&](auto in, auto rows) {
    using In = decltype(in);
    constexpr int N = decltype(rows)::value;
    const auto* given = static_cast<const Sum<In>*>(vectors);
    auto* parts = static_cast<Sum<In>*>(work);
    if constexpr (N == 0) {
      FUDLR_LAUNCH((sample_dots_mma_kernel<In, 4>), grid(slots(s) * count), kThreads, 0, stream, s,
                   count, slots(s), given, k, parts);
    } else {
      FUDLR_LAUNCH((sample_dots_kernel<In, N>), grid(slots(s) * count), threads(s), 0, stream, s,
                   count, slots(s), given, k, parts);
    }
  });
  if (error != nullptr) return error;
  dispatch_sum(s.number, [&](auto real) {
    using Real = decltype(real);
    FUDLR_LAUNCH((sample_dots_finish_kernel<Real>), grid(blocks(s.n * k, 256)), 256, 0, stream, s,
                 count, static_cast<const Real*>(work), k, static_cast<Real*>(to));
  });
  return launch_error();
}

int64_t sum_work(const Samples& s, int64_t count) {
  const int64_t parts = sum_parts(s, count);
  return parts == 1 ? 0 : parts * count * s.narrow.size * s.wide.size;
}

const char* grad_sum(const Samples& s, const void* weights, int64_t count, void* work,
                     const Stack& sums, void* stream) {
  const int64_t parts = sum_parts(s, count), all = sum_tiles(s, count);
  const int64_t matrix = s.narrow.size * s.wide.size;
  const Stack to = parts == 1 ? sums : Stack{work, matrix, s.wide.size, 1};
  const int64_t part_stride = count * matrix;
  const char* error = launch(s, count * s.narrow.size, [&](auto in, auto rows) {
    using In = decltype(in);
    constexpr int N = decltype(rows)::value;
    const auto* given = static_cast<const Sum<In>*>(weights);
    if constexpr (N == 0) {
      FUDLR_LAUNCH((grad_sum_mma_kernel<In, 2>), grid(parts * count * all), kThreads, 0, stream, s,
                   all, parts, given, count, to, part_stride);
    } else {
      FUDLR_LAUNCH((grad_sum_kernel<In, N>), grid(parts * all), threads(s), 0, stream, s, all,
                   parts, given, count, to, part_stride);
    }
  });
  if (error != nullptr || parts == 1) return error;
  dispatch_sum(s.number, [&](auto real) {
    using Real = decltype(real);
    FUDLR_LAUNCH((grad_sum_finish_kernel<Real>), grid(blocks(count * matrix, 256)), 256, 0, stream,
                 static_cast<const Real*>(work), parts, count, s.narrow.size, s.wide.size, sums);
  });
  return launch_error();
}

}  // namespace fudlr::gpu
