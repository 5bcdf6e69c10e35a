// Launches the sample_outer kernels: picks tiles and grids, by the sizes alone.
#include "cuda/sample_outer.cuh"
#include "cuda/sample_outer_mma.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kMostBlocks = 1 << 30;
constexpr int64_t kBlocksWanted = 1024;  // about eight for each multiprocessor of an H100
constexpr int64_t kLeastPart = 256;      // positions of grad_sum that are worth a block

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

unsigned grid(int64_t units) {
  return static_cast<unsigned>(units < kMostBlocks ? units : kMostBlocks);
}

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
int64_t threads(const Samples& s) {
  const int64_t vectors = blocks(s.wide.size, 16 / number_bytes(s.number));
  return least(kThreads, blocks(vectors, 32) * 32);
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
  const int64_t wanted = blocks(kBlocksWanted, most(units, 1));
  return most(1, least(wanted, blocks(s.positions, kLeastPart)));
}

template <typename In, int N>
const char* grads(const Samples& s, const Stack& to, void* stream) {
  const int64_t count = tiles(s, s.narrow.size);
  FUDLR_LAUNCH((sample_grads_kernel<In, N>), grid(s.n * count), threads(s), 0, stream, s, count,
               to);
  return launch_error();
}

template <typename In, int N>
const char* dots(const Samples& s, const void* vectors, int64_t k, void* work, void* stream) {
  const int64_t count = tiles(s, s.narrow.size);
  FUDLR_LAUNCH((sample_dots_kernel<In, N>), grid(slots(s) * count), threads(s), 0, stream, s, count,
               slots(s), static_cast<const Sum<In>*>(vectors), k, static_cast<Sum<In>*>(work));
  return launch_error();
}

template <typename In, int N>
const char* sum(const Samples& s, const void* weights, int64_t count, const Stack& to,
                int64_t part_stride, void* stream) {
  const int64_t all = sum_tiles(s, count);
  const int64_t parts = sum_parts(s, count);
  FUDLR_LAUNCH((grad_sum_kernel<In, N>), grid(parts * all), threads(s), 0, stream, s, all, parts,
               static_cast<const Sum<In>*>(weights), count, to, part_stride);
  return launch_error();
}

template <typename In>
const char* grads_mma(const Samples& s, const Stack& to, void* stream) {
  const int64_t count = tiles(s, s.narrow.size);
  FUDLR_LAUNCH((sample_grads_mma_kernel<In, 4>), grid(s.n * count), kThreads, 0, stream, s, count,
               to);
  return launch_error();
}

template <typename In>
const char* dots_mma(const Samples& s, const void* vectors, int64_t k, void* work, void* stream) {
  const int64_t count = tiles(s, s.narrow.size);
  FUDLR_LAUNCH((sample_dots_mma_kernel<In, 4>), grid(slots(s) * count), kThreads, 0, stream, s,
               count, slots(s), static_cast<const float*>(vectors), k, static_cast<float*>(work));
  return launch_error();
}

template <typename In>
const char* sum_mma(const Samples& s, const void* weights, int64_t count, const Stack& to,
                    int64_t part_stride, void* stream) {
  const int64_t all = sum_tiles(s, count);
  const int64_t parts = sum_parts(s, count);
  FUDLR_LAUNCH((grad_sum_mma_kernel<In, 2>), grid(parts * count * all), kThreads, 0, stream, s, all,
               parts, static_cast<const float*>(weights), count, to, part_stride);
  return launch_error();
}

}  // namespace

const char* check_offsets(const int64_t* offsets, int64_t n, int64_t positions, int* bad,
                          void* stream) {
  FUDLR_LAUNCH((check_offsets_kernel), 1,
               static_cast<unsigned>(least(1024, blocks(n + 1, 32) * 32)), 0, stream, offsets, n,
               positions, bad);
  return launch_error();
}

const char* sample_grads(const Samples& s, const Stack& to, void* stream) {
  switch (s.number) {
    case Number::f64:
      return grads<double, 8>(s, to, stream);
    case Number::bf16:
      return on_tensor_cores(s) ? grads_mma<Bf16>(s, to, stream) : grads<Bf16, 8>(s, to, stream);
    case Number::f16:
      return on_tensor_cores(s) ? grads_mma<Half>(s, to, stream) : grads<Half, 8>(s, to, stream);
    default:
      return s.narrow.size > 8 ? grads<float, 16>(s, to, stream) : grads<float, 8>(s, to, stream);
  }
}

int64_t dots_work(const Samples& s, int64_t k) { return slots(s) * tiles(s, s.narrow.size) * k; }

const char* sample_dots(const Samples& s, const void* vectors, int64_t k, void* work, void* to,
                        void* stream) {
  const auto run = [&] {
    switch (s.number) {
      case Number::f64:
        return dots<double, 8>(s, vectors, k, work, stream);
      case Number::bf16:
        return on_tensor_cores(s) ? dots_mma<Bf16>(s, vectors, k, work, stream)
                                  : dots<Bf16, 8>(s, vectors, k, work, stream);
      case Number::f16:
        return on_tensor_cores(s) ? dots_mma<Half>(s, vectors, k, work, stream)
                                  : dots<Half, 8>(s, vectors, k, work, stream);
      default:
        return s.narrow.size > 8 ? dots<float, 16>(s, vectors, k, work, stream)
                                 : dots<float, 8>(s, vectors, k, work, stream);
    }
  };
  if (const char* error = run()) return error;
  const int64_t count = tiles(s, s.narrow.size);
  const unsigned blocks_needed = grid(blocks(s.n * k, 256));
  if (s.number == Number::f64) {
    FUDLR_LAUNCH((sample_dots_finish_kernel<double>), blocks_needed, 256, 0, stream, s, count,
                 static_cast<const double*>(work), k, static_cast<double*>(to));
  } else {
    FUDLR_LAUNCH((sample_dots_finish_kernel<float>), blocks_needed, 256, 0, stream, s, count,
                 static_cast<const float*>(work), k, static_cast<float*>(to));
  }
  return launch_error();
}

int64_t sum_work(const Samples& s, int64_t count) {
  const int64_t parts = sum_parts(s, count);
  return parts == 1 ? 0 : parts * count * s.narrow.size * s.wide.size;
}

const char* grad_sum(const Samples& s, const void* weights, int64_t count, void* work,
                     const Stack& sums, void* stream) {
  const int64_t parts = sum_parts(s, count);
  const int64_t matrix = s.narrow.size * s.wide.size;
  const Stack to = parts == 1 ? sums : Stack{work, matrix, s.wide.size, 1};
  const int64_t part_stride = count * matrix;
  const auto run = [&] {
    switch (s.number) {
      case Number::f64:
        return sum<double, 8>(s, weights, count, to, part_stride, stream);
      case Number::bf16:
        return on_tensor_cores(s) ? sum_mma<Bf16>(s, weights, count, to, part_stride, stream)
                                  : sum<Bf16, 8>(s, weights, count, to, part_stride, stream);
      case Number::f16:
        return on_tensor_cores(s) ? sum_mma<Half>(s, weights, count, to, part_stride, stream)
                                  : sum<Half, 8>(s, weights, count, to, part_stride, stream);
      default:
        return count * s.narrow.size > 8
                   ? sum<float, 16>(s, weights, count, to, part_stride, stream)
                   : sum<float, 8>(s, weights, count, to, part_stride, stream);
    }
  };
  const char* error = run();
  if (error != nullptr || parts == 1) return error;
  const unsigned blocks_needed = grid(blocks(count * matrix, 256));
  if (s.number == Number::f64) {
    FUDLR_LAUNCH((grad_sum_finish_kernel<double>), blocks_needed, 256, 0, stream,
                 static_cast<const double*>(work), parts, count, s.narrow.size, s.wide.size, sums);
  } else {
    FUDLR_LAUNCH((grad_sum_finish_kernel<float>), blocks_needed, 256, 0, stream,
                 static_cast<const float*>(work), parts, count, s.narrow.size, s.wide.size, sums);
  }
  return launch_error();
}

}  // namespace fudlr::gpu
