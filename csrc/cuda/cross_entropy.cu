// Launches what a head's cross-entropy adds to the catalogue kernels.
#include "cuda/cross_entropy.cuh"

namespace fudlr::gpu {
namespace {

constexpr int64_t kMostBlocks = 1 << 30;

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

template <typename In>
const char* loss_of(const Catalogue& head, const Targets& targets, const void* lse, void* loss,
                    void* stream) {
  FUDLR_LAUNCH((target_loss_kernel<In>),
               static_cast<unsigned>(least(kMostBlocks, blocks(head.n, kLossThreads / 32))),
               kLossThreads, 0, stream, head, targets, static_cast<const Sum<In>*>(lse),
               static_cast<Sum<In>*>(loss));
  return launch_error();
}

}  // namespace

const char* check_targets(const Catalogue& head, const Targets& targets, int* bad, void* stream) {
  FUDLR_LAUNCH((check_targets_kernel), 1,
               static_cast<unsigned>(least(1024, blocks(head.n, 32) * 32)), 0, stream, targets,
               head.n, head.m, bad);
  return launch_error();
}

const char* target_loss(const Catalogue& head, const Targets& targets, const void* lse, void* loss,
                        void* stream) {
  switch (head.number) {
    case Number::f64:
      return loss_of<double>(head, targets, lse, loss, stream);
    case Number::bf16:
      return loss_of<Bf16>(head, targets, lse, loss, stream);
    case Number::f16:
      return loss_of<Half>(head, targets, lse, loss, stream);
    default:
      return loss_of<float>(head, targets, lse, loss, stream);
  }
}

}  // namespace fudlr::gpu
