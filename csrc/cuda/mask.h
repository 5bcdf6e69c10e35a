// Launchers of the mask kernels: pointers, sizes and a stream, no tensors.
//
// Each returns null, or what the launch had to say against itself. "Real" is float, or double for
// influences of double.
#pragma once

#include <cstdint>

#include "cuda/number.h"

namespace fudlr::gpu {

// s [n, k]: what the removal of sample i changes metric j by; row i starts `stride` numbers after
// row i - 1.
struct Influence {
  Number number;  // f32, f64, bf16, f16
  const void* data;
  int64_t stride, n, k;
};

// A step of Adam on the logits z of Real, and the gradient d (price + Σ_j weights_j s_j), d the
// slope of the mask.
struct MaskStep {
  const void* weights;            // [k]
  void *logits, *first, *second;  // z and the moments [n], changed in place
  double price;
  double fresh_first, fresh_second;  // 1 − β₁ and 1 − β₂
  double rate;                       // the learning rate / (1 − β₁^step)
  double correction;                 // 1 / (1 − β₂^step)
  double eps, limit;
};

// Both write Σ m, Σ d, Σ d², then Σ m s_j and then Σ d² s_j for each of the metrics, [3 + 2 k], for
// n > 0; work holds mask_work() numbers.
int64_t mask_work(const Influence& influence);
// After the step from z − shift.
const char* mask_step(const Influence& influence, const MaskStep& step, double shift, double* work,
                      double* sums, void* stream);
// At z − shift, which stays as it is.
const char* mask_sums(const Influence& influence, const void* logits, double shift, double* work,
                      double* sums, void* stream);

}  // namespace fudlr::gpu
