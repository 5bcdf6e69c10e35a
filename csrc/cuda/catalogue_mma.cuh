// A tile's scores on tensor cores, for items of 16 bits: 16 of a tile's users × all of its 64
// items a warp, as 8 accumulators of mma.m16n8k16.
//
// Users are float32, and stay so: h = high + middle + low, each the bfloat16 nearest to what is
// left, holds all 24 bits of h. Items in float16 are high + low, which leaves nothing over: of a
// number's 11 bits the high part takes 8, and the rest, 2^-24 at least, is far above the smallest
// bfloat16. (The other way about, float16 has too few exponents for the parts of a float32.) The
// products of all parts are exact, and summed in float32, an item's low part first: three
// tensor-core products at 990 TFLOP/s, or six, for one in float32 at 67.
//
// 16 numbers of depth are staged at a time, as they lie in global memory, [row, depth]: ldmatrix
// gives both operands as they are wanted. Rows are 48 bytes apart, so that the eight rows of a
// matrix lie in different banks.
#pragma once

#include "cuda/catalogue_tile.cuh"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kMmaDepth = 16;
constexpr int kParts = 3;  // of a user's number
template <typename In>
constexpr int kItemParts = 1;
template <>
inline constexpr int kItemParts<Half> = 2;

template <typename In>
  requires(sizeof(In) == 2)
struct Scorer<In> {
  using Rows = Bf16[kSide][kMmaDepth + 8];
  Rows* users;  // [kParts], shared: low, middle, high
  Rows* items;  // [kItemParts<In>], shared

  template <int N>
  static FUDLR_DEVICE void split(float x, Bf16 (&parts)[N]) {
#pragma unroll
    for (int p = N - 1; p >= 0; --p) {
      parts[p] = narrow_to<Bf16>(x);
      x -= widen(parts[p]);
    }
  }

  // A vector of one item's numbers into its row.
  FUDLR_DEVICE void put(const In (&numbers)[8], int row, int column) const {
    if constexpr (kItemParts<In> == 1) {
      *reinterpret_cast<uint4*>(&items[0][row][column]) = *reinterpret_cast<const uint4*>(numbers);
    } else {
      alignas(16) Bf16 all[kItemParts<In>][8];
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        Bf16 parts[kItemParts<In>];
        split(widen(numbers[v]), parts);
#pragma unroll
        for (int q = 0; q < kItemParts<In>; ++q) all[q][v] = parts[q];
      }
#pragma unroll
      for (int q = 0; q < kItemParts<In>; ++q) {
        *reinterpret_cast<uint4*>(&items[q][row][column]) = *reinterpret_cast<const uint4*>(all[q]);
      }
    }
  }

  FUDLR_DEVICE void stage(const gpu::Catalogue& c, int64_t user, int64_t item, int64_t k) const {
    // Users: two vectors of four floats a thread; items: one vector of eight.
    const Matrix<float> h = users_of<In>(c);
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
    const Matrix<In> all = items_of<In>(c);
    const int row = threadIdx.x / 2, column = threadIdx.x % 2 * 8;
    alignas(16) In numbers[8];
    load_some(all.data + (item + row) * all.stride + k + column,
              item + row < c.m ? c.width - k - column : 0,
              is_aligned(all.data) && all.stride % 8 == 0, numbers);
    put(numbers, row, column);
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
#pragma unroll
      for (int q = 0; q < kItemParts<In>; ++q) {
        uint32_t b[kSide / 16][4];
#pragma unroll
        for (int n = 0; n < kSide / 16; ++n) {
          // Matrices: depths 0-7 and 8-15 of 8 items, then the same of the next 8.
          load_matrices(b[n], &items[q][n * 16 + matrix / 2 * 8 + row][matrix % 2 * 8]);
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
