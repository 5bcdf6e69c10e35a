// Atomics, and the warp's matrix operations, by the PTX ISA's fragments; the layout is written down
// at mma_16x8x16 and load_matrices in csrc/cuda/cuda_compat.h, and tested element by element in
// tests/emu/test_emu_fragments.py.
#include "emulator/checker.h"
#include "emulator/cuda.h"

namespace emulator {
namespace {

struct Mma {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  float (*value)(uint16_t);
};

struct Matrices {
  uint32_t* to;
  const void* row;
  bool transposed;
};

template <typename Payload>
Payload& at(const Lanes& lanes, int lane) {
  return *static_cast<Payload*>(lanes[lane]);
}

uint16_t half_of(uint32_t pair, int which) { return static_cast<uint16_t>(pair >> (16 * which)); }

// Element i of a lane's A is at row g, or g + 8 for i in {2, 3, 6, 7}, and column 2q + i % 2, + 8
// from i = 4; of B at row 2q + i % 2, + 8 from i = 2, and column g; of D at row g, + 8 from i = 2,
// and column 2q + i % 2.
void multiply(const Lanes& lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Mma& mine = at<Mma>(lanes, lane);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const bool lower = i == 2 || i == 3 || i == 6 || i == 7;
      a[g + (lower ? 8 : 0)][2 * q + i % 2 + (i >= 4 ? 8 : 0)] =
          mine.value(half_of(mine.a[i / 2], i % 2));
    }
    for (int i = 0; i < 4; ++i) {
      b[2 * q + i % 2 + (i >= 2 ? 8 : 0)][g] = mine.value(half_of(mine.b[i / 2], i % 2));
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const Mma& mine = at<Mma>(lanes, lane);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + (i >= 2 ? 8 : 0), column = 2 * q + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      mine.d[i] += sum;
    }
  }
}

void gather(const Lanes& lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t m[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(m[row], at<Matrices>(lanes, 8 * matrix + row).row, sizeof(m[row]));
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, q = lane % 4;
      const Matrices& mine = at<Matrices>(lanes, lane);
      const uint16_t low = mine.transposed ? m[2 * q][g] : m[g][2 * q];
      const uint16_t high = mine.transposed ? m[2 * q + 1][g] : m[g][2 * q + 1];
      mine.to[matrix] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

}  // namespace

void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 float (*value)(uint16_t), Place place) {
  Mma mine{d, a, b, value};
  warp_together(0xffffffffu, &mine, multiply, place);
}

int atomic_or(int* address, int value) {
  check_atomic(address, sizeof(int));
  return std::exchange(*address, *address | value);
}

void load_matrices(uint32_t (&to)[4], const void* row, bool transposed, Place place) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    throw std::runtime_error("ldmatrix: a row must be aligned to 16 bytes");
  }
  check_matrix_row(row);
  Matrices mine{to, row, transposed};
  warp_together(0xffffffffu, &mine, gather, place);
}

}  // namespace emulator
