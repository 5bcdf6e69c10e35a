// A tile's scores on tensor cores, for items in bfloat16: 16 of a tile's users × all of its 64
// items a warp, as 8 accumulators of mma.m16n8k16.
//
// Users are float32, and stay so: h = high + middle + low, each the bfloat16 nearest to what is
// left, holds all 24 bits of h. Their products with bfloat16 items are exact, and summed in
// float32, the small ones first: three tensor-core products at 990 TFLOP/s for one in float32 at
// 67.
//
// 16 numbers of depth are staged at a time, as they lie in global memory, [row, depth]: ldmatrix
// gives both operands as they are wanted. Rows are 48 bytes apart, so that the eight rows of a
// matrix lie in different banks.
#pragma once

#include "cuda/catalogue_tile.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kMmaDepth = 16;
constexpr int kParts = 3;

template <>
struct Scorer<Bf16> {
  using Rows = Bf16[kSide][kMmaDepth + 8];
  Rows* users;  // [kParts], shared: low, middle, high
  Rows& items;

  static FUDLR_DEVICE void split(float x, Bf16 (&parts)[kParts]) {
#pragma unroll
    for (int p = kParts - 1; p >= 0; --p) {
      parts[p] = narrow_to<Bf16>(x);
      x -= widen(parts[p]);
    }
  }

  FUDLR_DEVICE void stage(const gpu::Catalogue& c, int64_t user, int64_t item, int64_t k) const {
    // Users: two vectors of four floats a thread; items: one vector of eight.
    const Matrix<float> h = users_of<Bf16>(c);
    const bool aligned = is_aligned(h.data) && h.stride % 4 == 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int vector = e * kTileThreads + threadIdx.x;
      const int row = vector / 4, column = vector % 4 * 4;
      alignas(16) float numbers[4];
      load_some(h.data + (user + row) * h.stride + k + column,
                user + row < c.n ? c.width - k - column : 0, aligned, numbers);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        Bf16 parts[kParts];
        split(numbers[v], parts);
#pragma unroll
        for (int p = 0; p < kParts; ++p) users[p][row][column + v] = parts[p];
      }
    }
    const Matrix<Bf16> all = items_of<Bf16>(c);
    const int row = threadIdx.x / 2, column = threadIdx.x % 2 * 8;
    alignas(16) Bf16 numbers[8];
    load_some(all.data + (item + row) * all.stride + k + column,
              item + row < c.m ? c.width - k - column : 0,
              is_aligned(all.data) && all.stride % 8 == 0, numbers);
    *reinterpret_cast<uint4*>(&items[row][column]) = *reinterpret_cast<const uint4*>(numbers);
  }

  FUDLR_DEVICE void operator()(const gpu::Catalogue& c, int64_t user, int64_t item, Slab<float>&,
                               Slab<float>&, Tile<float>& tile) const {
    const int lane = threadIdx.x % 32;
    const int first = threadIdx.x / 32 * 16;  // of the warp's users
    const int row = lane % 8;                 // of the matrix that this lane names a row of
    const int matrix = lane / 8;
    float d[kSide / 8][4] = {};
    for (int64_t k = 0; k < c.width; k += kMmaDepth) {
      __syncthreads();  // what was staged before has been read
      stage(c, user, item, k);
      __syncthreads();  // this is there
      uint32_t b[kSide / 16][4];
#pragma unroll
      for (int n = 0; n < kSide / 16; ++n) {
        // Matrices: depths 0-7 and 8-15 of 8 items, then the same of the next 8.
        load_matrices(b[n], &items[n * 16 + matrix / 2 * 8 + row][matrix % 2 * 8]);
      }
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        // Matrices: users 0-7 and 8-15 at depths 0-7, then the same at depths 8-15.
        uint32_t a[4];
        load_matrices(a, &users[p][first + matrix % 2 * 8 + row][matrix / 2 * 8]);
#pragma unroll
        for (int n = 0; n < kSide / 8; ++n) {
          const uint32_t pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          mma_16x8x16<Bf16>(d[n], a, pair);
        }
      }
    }
    __syncthreads();  // the tile of before has been read
#pragma unroll
    for (int n = 0; n < kSide / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        tile[first + lane / 4 + (i >= 2 ? 8 : 0)][column] =
            item + column < c.m ? static_cast<float>(c.scale) * d[n][i] : no_score<float>();
      }
    }
  }
};

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
