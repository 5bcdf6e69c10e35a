// The part of CUDA that the kernels use, with the same names and the same meaning, on the CPU.
// Included by csrc/cuda/cuda_compat.h where the compiler is not nvcc.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "emulator/runtime.h"

#define FUDLR_BACKEND emulated
#define FUDLR_DEVICE inline
#define FUDLR_BOTH inline
#define FUDLR_KERNEL(threads, blocks) void
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict

// An array that the block shares: a reference to heap memory, found by the place of declaration.
#define FUDLR_SHARED(type, name, extent)         \
  static const char fudlr_key_##name = 0;        \
  using fudlr_type_##name = type extent;         \
  auto& name = *static_cast<fudlr_type_##name*>( \
      ::emulator::shared_array(&fudlr_key_##name, sizeof(fudlr_type_##name)))
#define FUDLR_DYNAMIC_SHARED(name) \
  unsigned char* name = static_cast<unsigned char*>(::emulator::dynamic_shared())
#define FUDLR_UNWRAP(...) __VA_ARGS__
#define FUDLR_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (static_cast<void>(stream),                                  \
   ::emulator::run(grid, block, shared, [&] { FUDLR_UNWRAP kernel(__VA_ARGS__); }))

#define threadIdx (::emulator::fiber().index)
#define blockIdx (::emulator::launch_now().block_index)
#define blockDim (::emulator::launch_now().block)
#define gridDim (::emulator::launch_now().grid)

using dim3 = emulator::Extent;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) double2 {
  double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
// To the nearest, ties to even; NaN stays NaN.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __half2float(__half x) { return static_cast<float>(std::bit_cast<_Float16>(x.bits)); }
inline __half __float2half_rn(float x) {
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
}

namespace emulator {

template <typename Number>
Number from_bits(uint16_t bits) {
  return Number{bits};
}

// D += A B of a warp; the fragments' layout is written down at mma_16x8x16 in cuda_compat.h.
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 float (*value)(uint16_t), Place place = {__builtin_FILE(), __builtin_LINE()});
void load_matrices(uint32_t (&to)[4], const void* row, bool transposed,
                   Place place = {__builtin_FILE(), __builtin_LINE()});

// Not inline: the checker must see one access to memory, and that it is an atomic one.
int atomic_or(int* address, int value);

// A shuffle: each lane brings a value and the lane that it wants to hear.
template <typename Value>
struct Shuffle {
  Value value;
  int source;
  Value result;
};

template <typename Value>
Value shuffle(uint32_t mask, Value value, int source, Place place) {
  Shuffle<Value> mine{value, source, value};
  warp_together(
      mask, &mine,
      [](const Lanes& lanes) {
        for (void* lane : lanes) {
          if (lane == nullptr) continue;
          Shuffle<Value>& to = *static_cast<Shuffle<Value>*>(lane);
          void* from = to.source >= 0 && to.source < kWarp ? lanes[to.source] : nullptr;
          if (from != nullptr) to.result = static_cast<Shuffle<Value>*>(from)->value;
        }
      },
      place);
  return mine.result;
}

}  // namespace emulator

#define FUDLR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(FUDLR_HERE) { emulator::block_barrier({file, line}); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, FUDLR_HERE) {
  emulator::warp_together(mask, nullptr, nullptr, {file, line});
}
template <typename Value>
Value __shfl_xor_sync(uint32_t mask, Value value, int other, int width = 32, FUDLR_HERE) {
  const int lane = emulator::fiber().lane;
  const int source = lane ^ other;
  return emulator::shuffle(mask, value, source / width == lane / width ? source : lane,
                           {file, line});
}
template <typename Value>
Value __shfl_down_sync(uint32_t mask, Value value, unsigned by, int width = 32, FUDLR_HERE) {
  const int lane = emulator::fiber().lane;
  const int source = lane + static_cast<int>(by);
  return emulator::shuffle(mask, value, source / width == lane / width ? source : lane,
                           {file, line});
}
template <typename Value>
Value __shfl_sync(uint32_t mask, Value value, int source, int width = 32, FUDLR_HERE) {
  const int lane = emulator::fiber().lane;
  return emulator::shuffle(mask, value, lane / width * width + source % width, {file, line});
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, FUDLR_HERE) {
  struct Vote {
    int predicate;
    uint32_t result;
  } mine{predicate, 0};
  emulator::warp_together(mask, &mine,
                          [](const emulator::Lanes& lanes) {
                            uint32_t all = 0;
                            for (int i = 0; i < emulator::kWarp; ++i) {
                              if (lanes[i] != nullptr && static_cast<Vote*>(lanes[i])->predicate)
                                all |= 1u << i;
                            }
                            for (void* lane : lanes) {
                              if (lane != nullptr) static_cast<Vote*>(lane)->result = all;
                            }
                          },
                          {file, line});
  return mine.result;
}

inline int atomicOr(int* address, int value) { return emulator::atomic_or(address, value); }
inline int min(int a, int b) { return std::min(a, b); }
inline int max(int a, int b) { return std::max(a, b); }
inline int64_t min(int64_t a, int64_t b) { return std::min(a, b); }
inline int64_t max(int64_t a, int64_t b) { return std::max(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
using std::exp;
using std::fmax;
using std::log;
using std::sqrt;
