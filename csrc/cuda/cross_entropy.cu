// Launches what a head's cross-entropy adds to the catalogue kernels.
#include "cuda/cross_entropy.cuh"
#include "cuda/launch.cuh"

namespace fudlr::gpu {

const char* check_targets(const Catalogue& head, const Targets& targets, int* bad, void* stream) {
  FUDLR_LAUNCH((check_targets_kernel), 1, whole_warps(head.n, 1024), 0, stream, targets, head.n,
               head.m, bad);
  return launch_error();
}

const char* target_loss(const Catalogue& head, const Targets& targets, const void* lse, void* loss,
                        void* stream) {
  return dispatch(head.number, [&](auto in) {
    using In = decltype(in);
    FUDLR_LAUNCH((target_loss_kernel<In>), grid(blocks(head.n, kLossThreads / 32)), kLossThreads, 0,
                 stream, head, targets, static_cast<const Sum<In>*>(lse),
                 static_cast<Sum<In>*>(loss));
    return launch_error();
  });
}

}  // namespace fudlr::gpu
