// Launches the decoder kernels.
#include "cuda/decoder.cuh"
#include "cuda/launch.cuh"

namespace fudlr::gpu {
namespace {

// Calls run(In{}) for the numbers' type, and returns what the launch has to say.
template <typename Run>
const char* launch(Number number, Run run) {
  dispatch(number, run);
  return launch_error();
}

// Threads of a block that takes a whole row.
template <typename In>
unsigned row_threads(int64_t width) {
  return whole_warps(blocks(width, kVector<In>), kDecoderThreads);
}

// Blocks for a thread a vector.
template <typename In>
unsigned vector_grid(int64_t rows, int64_t width) {
  return grid(blocks(rows * blocks(width, kVector<In>), kDecoderThreads));
}

}  // namespace

const char* rms_norm(const Norm& norm, const Lines& added, double eps, const OutLines& sum,
                     const OutLines& y, void* scale, void* stream) {
  return launch(norm.number, [&](auto in) {
    using In = decltype(in);
    FUDLR_LAUNCH((rms_norm_kernel<In>), grid(norm.rows), row_threads<In>(norm.width), 0, stream,
                 norm, added, eps, sum, y, static_cast<Sum<In>*>(scale));
  });
}

const char* rms_norm_tangent(const Norm& norm, const Lines& dx, int64_t k, const OutLines& dy,
                             void* stream) {
  return launch(norm.number, [&](auto in) {
    using In = decltype(in);
    FUDLR_LAUNCH((rms_norm_tangent_kernel<In>), grid(norm.rows * k), row_threads<In>(norm.width), 0,
                 stream, norm, dx, k, dy);
  });
}

const char* rms_norm_backward(const Norm& norm, const Lines& grads, const Lines& added,
                              const Lines& delta, const Lines& dx, int64_t k,
                              const OutLines& result, void* stream) {
  return launch(norm.number, [&](auto in) {
    using In = decltype(in);
    FUDLR_LAUNCH((rms_norm_backward_kernel<In>), grid(norm.rows * k), row_threads<In>(norm.width),
                 0, stream, norm, grads, added, delta, dx, k, result);
  });
}

const char* swiglu(const Gated& in, const OutLines& a, void* stream) {
  return launch(in.number, [&](auto number) {
    using In = decltype(number);
    FUDLR_LAUNCH((swiglu_kernel<In>), vector_grid<In>(in.rows, in.width), kDecoderThreads, 0,
                 stream, in, a);
  });
}

const char* swiglu_tangent(const Gated& in, const Lines& dgu, int64_t k, const OutLines& da,
                           void* stream) {
  return launch(in.number, [&](auto number) {
    using In = decltype(number);
    FUDLR_LAUNCH((swiglu_tangent_kernel<In>), vector_grid<In>(in.rows * k, in.width),
                 kDecoderThreads, 0, stream, in, dgu, k, da);
  });
}

const char* swiglu_backward(const Gated& in, const Lines& grads, const Lines& delta,
                            const Lines& dgu, int64_t k, const OutLines& result, void* stream) {
  return launch(in.number, [&](auto number) {
    using In = decltype(number);
    FUDLR_LAUNCH((swiglu_backward_kernel<In>), vector_grid<In>(in.rows * k, in.width),
                 kDecoderThreads, 0, stream, in, grads, delta, dgu, k, result);
  });
}

const char* rotate_heads(Number number, const OutLines& x, const Lines& cos, const Lines& sin,
                         int64_t rows, int64_t heads, int64_t width, bool inverse, int64_t k,
                         void* stream) {
  return launch(number, [&](auto in) {
    using In = decltype(in);
    FUDLR_LAUNCH((rotate_heads_kernel<In>), grid(blocks(rows * k * (width / 2), kDecoderThreads)),
                 kDecoderThreads, 0, stream, x, cos, sin, rows, heads, width, inverse, k);
  });
}

}  // namespace fudlr::gpu
