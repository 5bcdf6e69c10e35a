// What kernel sources may use of CUDA, under two compilers: nvcc makes device code of it, and g++
// the emulation of tests/emu/, which runs the same source on the CPU, thread by thread.
//
// Shared memory, launches and inline PTX are spelled differently by the two and go through the
// names below; everything else (threadIdx, __syncthreads, shuffles, float4, ...) has one name in
// both. Kernels include no torch header: they take pointers, sizes and a stream.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// One mangled name for emulated and real code would merge silently: each backend has its own.
#define FUDLR_BACKEND cuda_device
#define FUDLR_DEVICE __device__ __forceinline__
#define FUDLR_BOTH __host__ __device__ __forceinline__
// A kernel of at most `threads` threads a block, of which `blocks` fit on a multiprocessor.
#define FUDLR_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
// An array in shared memory: FUDLR_SHARED(float, tile, [32][8]).
#define FUDLR_SHARED(type, name, extent) __shared__ __align__(16) type name extent
// The shared memory whose size the launch gives.
#define FUDLR_DYNAMIC_SHARED(name)                               \
  extern __shared__ __align__(16) unsigned char fudlr_dynamic[]; \
  unsigned char* name = fudlr_dynamic
// The kernel goes into parentheses, for the commas of its template arguments.
#define FUDLR_LAUNCH(kernel, grid, block, shared, stream, ...) \
  FUDLR_UNWRAP kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define FUDLR_UNWRAP(...) __VA_ARGS__

#else

#include "emulator/cuda.h"

#endif

namespace fudlr {
inline namespace FUDLR_BACKEND {

using Bf16 = __nv_bfloat16;
using Half = __half;

// What the last launch had to say against itself, or null.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

FUDLR_DEVICE float widen(float x) { return x; }
FUDLR_DEVICE double widen(double x) { return x; }
FUDLR_DEVICE float widen(int8_t x) { return x; }
FUDLR_DEVICE float widen(Bf16 x) { return __bfloat162float(x); }
FUDLR_DEVICE float widen(Half x) { return __half2float(x); }

template <typename To>
FUDLR_DEVICE To narrow_to(float x) {
  return static_cast<To>(x);
}
template <>
FUDLR_DEVICE Bf16 narrow_to<Bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
FUDLR_DEVICE Half narrow_to<Half>(float x) {
  return __float2half_rn(x);
}

// D = A B + D for one 16 x 8 x 16 product of a warp, in the fragments of the PTX ISA (section
// "Matrix Fragments for mma.m16n8k16 with floating point type"), with g = lane / 4, q = lane % 4:
//   a[0] = A[g][2q, 2q+1]    a[1] = A[g+8][2q, 2q+1]    a[2], a[3] the same at columns + 8
//   b[0] = B[2q, 2q+1][g]    b[1] = B[2q+8, 2q+9][g]
//   d[0], d[1] = D[g][2q, 2q+1]    d[2], d[3] = D[g+8][2q, 2q+1]
template <typename In>
FUDLR_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Four 8 x 8 matrices of 16-bit numbers from shared memory, transposed: lane 8m + r names row r of
// matrix m, and gets of each matrix M the pair M[2q][g], M[2q+1][g] (PTX ISA, ldmatrix).
FUDLR_DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row);

// The same four matrices, not transposed: each lane gets M[g][2q], M[g][2q+1].
FUDLR_DEVICE void load_matrices(uint32_t (&to)[4], const void* row);

#if defined(__CUDACC__)

template <>
FUDLR_DEVICE void mma_16x8x16<Bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
FUDLR_DEVICE void mma_16x8x16<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FUDLR_DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

FUDLR_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

#else

template <typename In>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma_16x8x16(d, a, b,
                        [](uint16_t bits) { return widen(emulator::from_bits<In>(bits)); });
}

inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  emulator::load_matrices(to, row, true);
}

inline void load_matrices(uint32_t (&to)[4], const void* row) {
  emulator::load_matrices(to, row, false);
}

#endif

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
