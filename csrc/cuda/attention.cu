// Launches the attention kernels.
#include "cuda/attention_part.cuh"
#include "cuda/launch.cuh"

namespace fudlr::gpu {
namespace {

unsigned grid(int64_t rows, const Attention& all, int64_t heads) {
  return fudlr::grid(max_of(1, attend::slots(rows, all.samples) * heads));
}

// Calls run(Real{}) for the type of sums, and returns what the launch has to say.
template <typename Run>
const char* launch(const Attention& all, Run run) {
  dispatch_sum(all.number, run);
  return launch_error();
}

}  // namespace

const char* check_attention(const Attention& all, int* bad, void* stream) {
  FUDLR_LAUNCH((check_attention_kernel),
               fudlr::grid(max_of(all.samples, all.queries) / attend::kThreads + 1),
               attend::kThreads, 0, stream, all, bad);
  return launch_error();
}

const char* attention(const Attention& all, const OutLines& out, void* stream) {
  return launch(all, [&](auto real) {
    FUDLR_LAUNCH((attention_kernel<decltype(real)>), grid(all.queries, all, all.heads),
                 attend::kThreads, 0, stream, all, out);
  });
}

const char* attention_sums(const Attention& all, const AttentionAlong& along, void* stream) {
  return launch(all, [&](auto real) {
    FUDLR_LAUNCH((attention_sums_kernel<decltype(real)>),
                 grid(all.queries, all, all.heads * along.k), attend::kThreads, 0, stream, all,
                 along);
  });
}

const char* attention_part(const Attention& all, const AttentionAlong& along, AttentionPart part,
                           const OutLines& out, void* stream) {
  const bool by_key = part == AttentionPart::keys || part == AttentionPart::values;
  const unsigned blocks = by_key ? grid(all.keys, all, all.key_heads * along.k)
                                 : grid(all.queries, all, all.heads * along.k);
  return launch(all, [&](auto real) {
    FUDLR_LAUNCH((attention_part_kernel<decltype(real)>), blocks, attend::kThreads, 0, stream, all,
                 along, part, out);
  });
}

}  // namespace fudlr::gpu
