// Launches the row_products kernels: picks parts, waves and grids, by the sizes alone.
#include "cuda/launch.cuh"
#include "cuda/row_products.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kBlocksWanted = 512;    // about four for each multiprocessor of an H100
constexpr int64_t kMinColumns = 4096;     // of a part that is worth a block
constexpr int64_t kWaveBytes = 16 << 20;  // of rows that stay in the L2 of an A100 or H100

template <typename In>
unsigned threads(const StoredRows& g) {
  return whole_warps(blocks(g.p, kVector<In>), kRowThreads);
}

// Calls run(In{}) for the rows' type.
template <typename Run>
auto dispatch(const StoredRows& g, Run run) {
  return g.number == Number::int8 ? run(int8_t{}) : fudlr::dispatch(g.number, run);
}

int64_t number_bytes(const StoredRows& g) {
  return dispatch(g, [](auto in) { return static_cast<int64_t>(sizeof(in)); });
}

// Parts of the columns where there are too few rows for the device.
int64_t dots_parts(const StoredRows& g) {
  const int64_t groups = blocks(g.n, g.number == Number::int8 ? 2 : 4);
  return max_of(1, min_of(blocks(kBlocksWanted, max_of(groups, 1)), g.p / kMinColumns));
}

// Rows of row_gram that go through both products one after the other: whole chunks.
int64_t wave_rows(const StoredRows& g) {
  const int64_t row = max_of(g.p * number_bytes(g), 1);
  return max_of(1, kWaveBytes / row / kRowChunk) * kRowChunk;
}

// Rows first .. first + count.
StoredRows slice(const StoredRows& g, int64_t first, int64_t count) {
  StoredRows part = g;
  part.data = static_cast<const char*>(g.data) + first * g.stride * number_bytes(g);
  part.n = count;
  if (g.scales != nullptr) part.scales = g.scales + first * g.scale_stride;
  return part;
}

template <typename In>
const char* dots(const StoredRows& g, const void* vectors, int64_t k, int64_t parts, void* work,
                 void* to, void* stream) {
  const int64_t length = blocks(blocks(g.p, parts), kMinColumns) * kMinColumns;
  const int64_t units = blocks(g.n, kRowsAtOnce<In>) * parts;
  FUDLR_LAUNCH((row_dots_kernel<In>), grid(units), threads<In>(g), 0, stream, g,
               static_cast<const Sum<In>*>(vectors), k, parts, length,
               static_cast<Sum<In>*>(parts == 1 ? to : work));
  const char* error = launch_error();
  if (error != nullptr || parts == 1) return error;
  FUDLR_LAUNCH((join_parts_kernel<Sum<In>, Sum<In>>), grid(blocks(g.n * k, 256)), 256, 0, stream,
               static_cast<const Sum<In>*>(work), parts, g.n * k, static_cast<Sum<In>*>(to));
  return launch_error();
}

// The sums of every chunk.
template <typename In>
const char* chunk_sums(const StoredRows& g, const Coefficients& c, int64_t count, Sum<In>* work,
                       void* stream) {
  const int64_t across = blocks(blocks(g.p, kVector<In>), threads<In>(g));
  const int64_t units = blocks(g.n, kRowChunk) * blocks(count, kSumsAtOnce<In>) * across;
  FUDLR_LAUNCH((row_sums_kernel<In>), grid(units), threads<In>(g), 0, stream, g, c, count, across,
               work);
  return launch_error();
}

template <typename In>
const char* join_chunks(const StoredRows& g, int64_t count, const void* work, double* to,
                        void* stream) {
  FUDLR_LAUNCH((join_parts_kernel<Sum<In>, double>), grid(blocks(count * g.p, 256)), 256, 0, stream,
               static_cast<const Sum<In>*>(work), blocks(g.n, kRowChunk), count * g.p, to);
  return launch_error();
}

}  // namespace

int64_t row_dots_work(const StoredRows& g, int64_t k) {
  const int64_t parts = dots_parts(g);
  return parts == 1 ? 0 : parts * g.n * k;
}

const char* row_dots(const StoredRows& g, const void* vectors, int64_t k, void* work, void* to,
                     void* stream) {
  return dispatch(g, [&](auto in) {
    return dots<decltype(in)>(g, vectors, k, dots_parts(g), work, to, stream);
  });
}

int64_t row_sums_work(const StoredRows& g, int64_t count) {
  return blocks(g.n, kRowChunk) * count * g.p;
}

const char* row_sums(const StoredRows& g, const Coefficients& c, int64_t count, void* work,
                     double* to, void* stream) {
  return dispatch(g, [&](auto in) {
    using In = decltype(in);
    const char* error = chunk_sums<In>(g, c, count, static_cast<Sum<In>*>(work), stream);
    return error != nullptr ? error : join_chunks<In>(g, count, work, to, stream);
  });
}

int64_t row_gram_dots_work(const StoredRows& g, int64_t k) {
  return row_dots_work(slice(g, 0, min_of(g.n, wave_rows(g))), k);
}

const char* row_gram(const StoredRows& g, const void* vectors, const void* weights, int64_t k,
                     void* dots_work, void* sums_work, void* to_dots, double* to_sums,
                     void* stream) {
  return dispatch(g, [&](auto in) {
    using In = decltype(in);
    const int64_t wave = min_of(g.n, wave_rows(g));
    const int64_t parts = dots_parts(slice(g, 0, wave));
    const Sum<In>* given = static_cast<const Sum<In>*>(weights);
    for (int64_t first = 0; first < g.n; first += wave) {
      const StoredRows rows = slice(g, first, min_of(wave, g.n - first));
      Sum<In>* products = static_cast<Sum<In>*>(to_dots) + first * k;
      const char* error = dots<In>(rows, vectors, k, parts, dots_work, products, stream);
      if (error != nullptr) return error;
      const Coefficients c{products, k, 1, given == nullptr ? nullptr : given + first};
      error = chunk_sums<In>(
          rows, c, k, static_cast<Sum<In>*>(sums_work) + first / kRowChunk * k * g.p, stream);
      if (error != nullptr) return error;
    }
    return join_chunks<In>(g, k, sums_work, to_sums, stream);
  });
}

}  // namespace fudlr::gpu
