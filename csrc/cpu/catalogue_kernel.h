// A softmax over a catalogue of M items for n users, tile by tile, on pointers and sizes; compiled
// once for each instruction set.
//
// Limit: n·M·w multiply-adds for the scores and n·M exponentials, forward and backward each;
// backward n·M·w more for each of the gradients in h and in E. Memory sees E once each way: with
// more than a handful of users the adders are the limit. No n × M matrix exists, only a tile of
// 128 users × 240 items a thread.
#pragma once

#include <cstdint>

#include "cpu/sample_outer_kernel.h"

// glibc 2.29 gave these another version, which nothing here depends on: with the first one the
// library loads with any glibc since 2.17.
#if defined(__x86_64__) && defined(__GLIBC__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
#endif

namespace fudlr {

constexpr int64_t kItemTile = 240;             // items whose scores exist at one time
constexpr int64_t kItemChunk = 4 * kItemTile;  // the unit that threads share

template <typename In, typename Real>
struct Catalogue {
  const Real* users;  // h · scale, [n, padded width], zeros behind the width
  int64_t n;
  int64_t padded;
  const In* items;  // E [M, width]; item m starts at items + m * item_stride
  int64_t item_stride;
  int64_t width;
  const Real* values;  // C [M, c], dense; null where all that is wanted are gradients in C
  int64_t c;
  const int64_t* seen_offsets;  // [n + 1], or null
  const int64_t* seen;          // item numbers, rising within each user
};

// What the backward pass makes of ∂ℓ/∂s_im = p_im (g_i · C_m − shift_i), p_im = exp(s_im − lse_i).
template <typename In, typename Real>
struct CatalogueGradients {
  const Real* weights;  // g [n, c]
  const Real* shift;    // [n]
  const Real* lse;      // [n]
  const Real* packed;   // the users as `pack_users` puts them; read for gradients in the items
  Real* users;          // Σ_m ∂s e_m over the chunk, [n, padded width], or null
  In* items;            // Σ_i ∂s h_i · scale, [M, width] dense, or null
  Real* values;         // Σ_i p_im g_i, [M, c] dense, or null
};

template <typename In, typename Real>
struct CatalogueKernels {
  int64_t (*padded)(int64_t width);
  // For the items begin .. end: each user's largest score, Σ exp(s − largest) and
  // Σ exp(s − largest) C_m, [n, 2 + c].
  void (*forward)(const Catalogue<In, Real>&, int64_t begin, int64_t end, double* partial);
  // The users in the order that `backward` reads them in, [n, padded width].
  void (*pack_users)(const Catalogue<In, Real>&, Real* to);
  void (*backward)(const Catalogue<In, Real>&, const CatalogueGradients<In, Real>&, int64_t begin,
                   int64_t end);
  // Each user's k highest scores and their items, [n, k], highest first, of equal ones the lower
  // item first; −∞ and −1 where there are fewer.
  void (*top)(const Catalogue<In, Real>&, int64_t k, int64_t begin, int64_t end, Real* scores,
              int64_t* items);
};

struct CatalogueTable {
  CatalogueKernels<float, float> f32;
  CatalogueKernels<double, double> f64;
  CatalogueKernels<Bfloat16, float> bf16;
};

FUDLR_DECLARE_TABLE(CatalogueTable, catalogue);

}  // namespace fudlr
