// Launches the mask kernels.
#include "cuda/mask.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kMostBlocks = 1 << 30;

int64_t chunks_of(const Influence& s) { return (s.n + kMaskChunk - 1) / kMaskChunk; }
int64_t sums_of(const Influence& s) { return kMaskSums + 2 * s.k; }
unsigned grid(int64_t units) {
  return static_cast<unsigned>(units < kMostBlocks ? units : kMostBlocks);
}

// Calls run(In{}) for the influences' type, and adds the chunks.
template <typename Run>
const char* launch(const Influence& s, const double* work, double* sums, void* stream, Run run) {
  switch (s.number) {
    case Number::f64:
      run(double{});
      break;
    case Number::bf16:
      run(Bf16{});
      break;
    case Number::f16:
      run(Half{});
      break;
    default:
      run(float{});
  }
  if (const char* error = launch_error()) return error;
  FUDLR_LAUNCH((mask_finish_kernel), grid(sums_of(s)), kMaskThreads, 0, stream, work, chunks_of(s),
               sums_of(s), sums);
  return launch_error();
}

}  // namespace

int64_t mask_work(const Influence& s) { return chunks_of(s) * sums_of(s); }

const char* mask_step(const Influence& s, const MaskStep& step, double shift, double* work,
                      double* sums, void* stream) {
  return launch(s, work, sums, stream, [&](auto in) {
    using In = decltype(in);
    using Real = Sum<In>;
    const AdamStep<Real> task{
        static_cast<const Real*>(step.weights), static_cast<Real*>(step.logits),
        static_cast<Real*>(step.first),         static_cast<Real*>(step.second),
        static_cast<Real>(step.price),          static_cast<Real>(step.fresh_first),
        static_cast<Real>(step.fresh_second),   static_cast<Real>(step.rate),
        static_cast<Real>(step.correction),     static_cast<Real>(step.eps),
        static_cast<Real>(step.limit)};
    FUDLR_LAUNCH((mask_step_kernel<In>), grid(chunks_of(s)), kMaskThreads, 0, stream, s, task,
                 static_cast<Real>(shift), work);
  });
}

const char* mask_sums(const Influence& s, const void* logits, double shift, double* work,
                      double* sums, void* stream) {
  return launch(s, work, sums, stream, [&](auto in) {
    using In = decltype(in);
    using Real = Sum<In>;
    FUDLR_LAUNCH((mask_sums_kernel<In>), grid(chunks_of(s)), kMaskThreads, 0, stream, s,
                 static_cast<const Real*>(logits), static_cast<Real>(shift), work);
  });
}

}  // namespace fudlr::gpu
