// A head's cross-entropy ℓ_i = log Σ_v exp(h_i · w_v) − h_i · w_{t_i}. A softmax over a vocabulary
// is one over a catalogue: log Σ exp and both gradients are the passes of catalogue.cuh, without
// value columns, the targets taken off in the tiles, p_iv − [v = t_i], so that no order of rows is
// lost to atomics. Here is what remains: one product a row.
//
// Who does what. A warp has a row; a lane takes every 32nd vector of 16 bytes of w_{t_i}, and the
// numbers of h_i that belong to it, straight to registers: nothing is used twice.
//
// Order of reduction. A lane's numbers from left to right, lanes (warp_sum), in float64: the
// difference to log Σ exp cancels where the target is likely. No atomics.
//
// Must move: n (d · (bytes of h + bytes of w) + 24), 2 n d operations: on an H100 6 n d / 3.35e12 s
// for a weight of 16 bits, next to nothing beside the 2 n V d operations of the scores.
#pragma once

#include "cuda/catalogue_tile.cuh"
#include "cuda/cross_entropy.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kLossThreads = 256;

template <typename In>
FUDLR_DEVICE double target_score(const gpu::Catalogue& head, int64_t row, int64_t target) {
  constexpr int V = kVector<In>;
  const Matrix<Sum<In>> hidden = users_of<In>(head);
  const Matrix<In> weight = items_of<In>(head);
  const Sum<In>* h = hidden.data + row * hidden.stride;
  const In* w = weight.data + target * weight.stride;
  const bool h_aligned = is_aligned(h), w_aligned = is_aligned(w);
  double score = 0;
  for (int64_t j = threadIdx.x % 32 * V; j < head.width; j += 32 * V) {
    alignas(16) Sum<In> x[V];
    alignas(16) In y[V];
    load_some(h + j, head.width - j, h_aligned, x);
    load_some(w + j, head.width - j, w_aligned, y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      score += static_cast<double>(x[v]) * static_cast<double>(widen(y[v]));
    }
  }
  return warp_sum(score);
}

template <typename In>
FUDLR_KERNEL(kLossThreads, 2)
target_loss_kernel(gpu::Catalogue head, gpu::Targets targets, const Sum<In>* lse, Sum<In>* loss) {
  constexpr int kRows = kLossThreads / 32;
  const bool bad = *head.bad != 0;
  for (int64_t row = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x / 32; row < head.n;
       row += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t target = targets.rows[row];
    Sum<In> result = bad ? quiet_nan<Sum<In>>() : Sum<In>(0);
    if (!bad && target != targets.ignored) {
      result = static_cast<Sum<In>>(lse[row] - target_score<In>(head, row, target));
    }
    if (threadIdx.x % 32 == 0) loss[row] = result;
  }
}

// One block: looks at all targets.
FUDLR_KERNEL(1024, 1)
check_targets_kernel(gpu::Targets targets, int64_t n, int64_t m, int* bad) {
  FUDLR_SHARED(int, found, [1]);
  if (threadIdx.x == 0) found[0] = 0;
  __syncthreads();
  bool wrong = false;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const int64_t target = targets.rows[i];
    wrong |= target != targets.ignored && (target < 0 || target >= m);
  }
  if (wrong) atomicOr(found, 1);
  __syncthreads();
  if (threadIdx.x == 0) *bad = found[0];
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
