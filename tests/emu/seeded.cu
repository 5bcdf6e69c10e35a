// Kernels with errors that can be switched on: what the emulator must notice.
//
// The kernel is shaped like ours: tiles staged in shared memory, a block's reduction by shuffles, a
// product on tensor cores, one result a thread. Bug 0 is none.
#include <exception>
#include <string>

#include "cuda/cuda_compat.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

enum Bug {
  kNone,
  kNoBarrierAfterLoad,
  kNoBarrierAtTileEnd,
  kNoBarrierAfterReduction,
  kShuffleInBranch,
  kBarrierInBranch,
  kGlobalOverrun,
  kSharedOverrun,
  kUnwrittenOutput,
  kWrongFragment,
  kTwoBlocksOneOutput,
  kNoWarpBarrier,
};

constexpr int kBlock = 64;
constexpr int kTiles = 3;
constexpr int kRounds = 2;

// out [blocks, kBlock + kRounds]: for thread t the sum over the tiles of its right neighbour's
// number, then the block's sum of (round + 1) times that.
FUDLR_KERNEL(kBlock, 1)
seeded_kernel(const float* in, float* out, int bug) {
  FUDLR_SHARED(float, tile, [kBlock]);
  FUDLR_SHARED(float, sums, [kBlock / 32]);
  FUDLR_SHARED(int, summed, [1]);
  const int t = threadIdx.x;
  if (t == 0) summed[0] = 0;
  const float* mine = in + blockIdx.x * kTiles * kBlock;
  float* to = out + (bug == kTwoBlocksOneOutput ? 0 : blockIdx.x) * (kBlock + kRounds);
  float sum = 0;
  for (int i = 0; i < kTiles; ++i) {
    const int at = bug == kGlobalOverrun && i == kTiles - 1 ? t + 1 : t;
    tile[bug == kSharedOverrun && t == kBlock - 1 ? kBlock : t] = mine[i * kBlock + at];
    if (bug != kNoBarrierAfterLoad) __syncthreads();
    sum += tile[(t + 1) % kBlock];
    if (bug != kNoBarrierAtTileEnd) __syncthreads();
  }
  atomicOr(summed, 1);  // by all at once, which is no race
  if (bug != kUnwrittenOutput || t != kBlock - 1) to[t] = sum;
  for (int round = 0; round < kRounds; ++round) {
    float total = sum * static_cast<float>(round + 1);
    if (bug == kShuffleInBranch) {
      if (t % 32 < 16) total += __shfl_xor_sync(0xffffffffu, total, 16);
    } else {
      total += __shfl_xor_sync(0xffffffffu, total, 16);
    }
    for (int other = 8; other > 0; other /= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, other);
    }
    if (t % 32 == 0) sums[t / 32] = total;
    if (bug == kBarrierInBranch) {
      if (t < 32) __syncthreads();
    } else {
      __syncthreads();
    }
    if (t == kBlock - 1) to[kBlock + round] = summed[0] == 1 ? sums[0] + sums[1] : 0.f;
    if (bug != kNoBarrierAfterReduction) __syncthreads();
  }
}

// out [32] = each lane's left neighbour's number, through shared memory within one warp.
FUDLR_KERNEL(32, 1)
warp_kernel(const float* in, float* out, int bug) {
  FUDLR_SHARED(float, row, [32]);
  const int t = threadIdx.x;
  row[t] = in[t];
  if (bug != kNoWarpBarrier) __syncwarp();
  out[t] = row[(t + 31) % 32];
}

// d [16, 8] = a [16, 16] b [16, 8] in bf16, loaded as our kernels do.
FUDLR_KERNEL(32, 1)
product_kernel(const Bf16* a, const Bf16* b, float* d, int bug) {
  FUDLR_SHARED(Bf16, left, [16][16]);
  FUDLR_SHARED(Bf16, right, [16][16]);
  const int t = threadIdx.x;
  for (int e = t; e < 256; e += 32) {
    left[e % 16][e / 16] = a[e];  // by column, as narrow factors lie
    right[e / 16][e % 16] = e % 16 < 8 ? b[e / 16 * 8 + e % 16] : narrow_to<Bf16>(0.f);
  }
  __syncthreads();
  const int row = t % 8, matrix = t / 8;
  uint32_t at[4], bt[4];
  load_matrices_transposed(at, &left[matrix / 2 * 8 + row][matrix % 2 * 8]);
  load_matrices_transposed(bt, &right[matrix % 2 * 8 + row][matrix / 2 * 8]);
  if (bug == kWrongFragment) {
    const uint32_t swapped = at[1];
    at[1] = at[2];
    at[2] = swapped;
  }
  float sums[4] = {};
  const uint32_t pair[2] = {bt[0], bt[1]};
  mma_16x8x16<Bf16>(sums, at, pair);
  for (int i = 0; i < 4; ++i) d[(t / 4 + (i >= 2 ? 8 : 0)) * 8 + t % 4 * 2 + i % 2] = sums[i];
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr

namespace {

// Null, or the emulator's complaint; valid until the next call.
template <typename Launch>
const char* complaint(Launch launch) {
  static std::string said;
  try {
    launch();
    return nullptr;
  } catch (const std::exception& error) {
    said = error.what();
    return said.c_str();
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* seeded_tiles(const float* in,
                                                                           float* out, int blocks,
                                                                           int bug) {
  return complaint([&] {
    FUDLR_LAUNCH((fudlr::seeded_kernel), static_cast<unsigned>(blocks), fudlr::kBlock, 0, nullptr,
                 in, out, bug);
  });
}

extern "C" __attribute__((visibility("default"))) const char* seeded_warp(const float* in,
                                                                          float* out, int bug) {
  return complaint([&] { FUDLR_LAUNCH((fudlr::warp_kernel), 1, 32, 0, nullptr, in, out, bug); });
}

extern "C" __attribute__((visibility("default"))) const char* seeded_product(const uint16_t* a,
                                                                             const uint16_t* b,
                                                                             float* d, int bug) {
  return complaint([&] {
    FUDLR_LAUNCH((fudlr::product_kernel), 1, 32, 0, nullptr,
                 reinterpret_cast<const fudlr::Bf16*>(a), reinterpret_cast<const fudlr::Bf16*>(b),
                 d, bug);
  });
}
