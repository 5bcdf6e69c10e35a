// Bare warp operations on registers that the test fills by the PTX manual's formulas.
#include "cuda/cuda_compat.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

// a [32, 4], b [32, 2], c and d [32, 4]: the registers of each lane.
template <typename In>
FUDLR_KERNEL(32, 1)
registers_kernel(const uint32_t* a, const uint32_t* b, const float* c, float* d) {
  const int lane = threadIdx.x;
  uint32_t at[4], bt[2];
  float sums[4];
  for (int i = 0; i < 4; ++i) at[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) bt[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) sums[i] = c[lane * 4 + i];
  mma_16x8x16<In>(sums, at, bt);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sums[i];
}

// matrices [4, 8, 8] -> to [32, 4]
FUDLR_KERNEL(32, 1)
load_kernel(const uint16_t* matrices, int transposed, uint32_t* to) {
  FUDLR_SHARED(uint16_t, staged, [4][8][8]);
  const int lane = threadIdx.x;
  for (int e = lane; e < 256; e += 32) staged[e / 64][e / 8 % 8][e % 8] = matrices[e];
  __syncthreads();
  uint32_t registers[4];
  if (transposed) {
    load_matrices_transposed(registers, staged[lane / 8][lane % 8]);
  } else {
    load_matrices(registers, staged[lane / 8][lane % 8]);
  }
  for (int i = 0; i < 4; ++i) to[lane * 4 + i] = registers[i];
}

// Numbers rounded to 16 bits and widened again.
template <typename In>
FUDLR_KERNEL(32, 1)
round_kernel(const float* in, int n, float* out) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = widen(narrow_to<In>(in[i]));
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr

#define FUDLR_PUBLIC extern "C" __attribute__((visibility("default")))

FUDLR_PUBLIC void fragments_mma(int half, const uint32_t* a, const uint32_t* b, const float* c,
                                float* d) {
  if (half) {
    FUDLR_LAUNCH((fudlr::registers_kernel<fudlr::Half>), 1, 32, 0, nullptr, a, b, c, d);
  } else {
    FUDLR_LAUNCH((fudlr::registers_kernel<fudlr::Bf16>), 1, 32, 0, nullptr, a, b, c, d);
  }
}

FUDLR_PUBLIC void fragments_load(int transposed, const uint16_t* matrices, uint32_t* to) {
  FUDLR_LAUNCH((fudlr::load_kernel), 1, 32, 0, nullptr, matrices, transposed, to);
}

FUDLR_PUBLIC void fragments_round(int half, const float* in, int n, float* out) {
  if (half) {
    FUDLR_LAUNCH((fudlr::round_kernel<fudlr::Half>), 1, 32, 0, nullptr, in, n, out);
  } else {
    FUDLR_LAUNCH((fudlr::round_kernel<fudlr::Bf16>), 1, 32, 0, nullptr, in, n, out);
  }
}
