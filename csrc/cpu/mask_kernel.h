// A step of Adam on the logits z [n] of a mask m = σ(z), and the sums that the next one needs, on
// pointers and sizes; compiled once for each instruction set.
//
// Limit: memory sees each influence once and z and Adam's two moments twice, n·(k·(bytes of an
// influence) + 6·(bytes of a logit)); n·(4 k + 40) multiply-adds or so, an exponential, a division
// and a root hide behind that. Blocks of 256 samples stay in L1 while all is done with them.
#pragma once

#include <cstdint>

#include "cpu/sample_outer_kernel.h"

namespace fudlr {

constexpr int64_t kMaskChunk = 4096;  // samples that a thread takes at a time
constexpr int64_t kMaskSums = 3;      // sums beside those of each metric

// s [n, k]: what the removal of sample i changes metric j by; row i starts at data + i * stride.
template <typename In>
struct Influences {
  const In* data;
  int64_t stride;
  int64_t k;
};

// One step: with d = m (1 − m) at z − shift, g = d (price + Σ_j weights_j s_j) and Adam's moments.
template <typename Real>
struct MaskStep {
  const Real* weights;  // ∂(objective)/∂(change of metric j), [k]
  Real* logits;         // z [n]
  Real* first;          // moments [n]
  Real* second;
  Real price;
  Real fresh_first;   // 1 − β₁
  Real fresh_second;  // 1 − β₂
  Real rate;          // the learning rate / (1 − β₁^step)
  Real correction;    // 1 / (1 − β₂^step)
  Real eps;
  Real limit;  // |z| stays within
};

// Both write, for the samples begin .. end, Σ m, Σ d, Σ d², then Σ m s_j and then Σ d² s_j for each
// of the metrics, [3 + 2 k].
template <typename In, typename Real>
struct MaskKernels {
  void (*step)(const Influences<In>&, const MaskStep<Real>&, Real shift, int64_t begin, int64_t end,
               double* sums);
  // At z − shift, which stays as it is.
  void (*sums)(const Influences<In>&, const Real* logits, Real shift, int64_t begin, int64_t end,
               double* sums);
};

struct MaskTable {
  MaskKernels<float, float> f32;
  MaskKernels<double, double> f64;
  MaskKernels<Bfloat16, float> bf16;
};

namespace portable {
extern const MaskTable mask_steps;
}
namespace avx2 {
extern const MaskTable mask_steps;
}
namespace avx512 {
extern const MaskTable mask_steps;
}

}  // namespace fudlr
