// Launchers of the catalogue kernels: pointers, sizes and a stream, no tensors.
//
// Each returns null, or what the launch had to say against itself. "Real" is float, or double for
// items of double.
#pragma once

#include <cstdint>

#include "cuda/number.h"

namespace fudlr::gpu {

// Rows of numbers, `stride` apart, the numbers of a row without gaps.
template <typename Number>
struct Matrix {
  const Number* data;
  int64_t stride, rows, columns;
};

// Scores scale · h_i · e_m of n users [n, width] of Real and M items [M, width], but of items that
// a user has seen: those have the keys i · M + m in seen[seen_offsets[i] : seen_offsets[i + 1]],
// rising. Null where nobody has seen any.
struct Catalogue {
  Number number;  // of the items: f32, f64, bf16, f16
  const void* users;
  int64_t user_stride, n;
  const void* items;
  int64_t item_stride, m;
  int64_t width;
  double scale;
  const int64_t* seen_offsets;
  const int64_t* seen;
  const int* bad;  // not zero where what was seen makes no sense, see check_seen; or null
};

// *bad = whether the offsets [n + 1] fall somewhere or leave 0 .. listed, or one of the `listed`
// items is none of 0 .. m. Where they are bad nothing is read through them, and every number of
// the result is NaN. keys [listed]: i · m + item, i being the user that a place belongs to, -1
// before the first offset and n after the last one.
const char* check_seen(const int64_t* offsets, int64_t n, const int64_t* items, int64_t listed,
                       int64_t m, int* bad, int64_t* keys, void* stream);

// values [M, c], mean [n, c] and lse [n] in Real without gaps; states_work and sums_work hold
// mean_states() · 2 and mean_states() · c Reals.
int64_t mean_states(const Catalogue& catalogue);
const char* catalogue_mean(const Catalogue& catalogue, const void* values, int64_t c,
                           void* states_work, void* sums_work, void* mean, void* lse, void* stream);

// The backward pass: ∂ℓ/∂s_im = p_im (g_i · C_m − shift_i), p_im = exp(s_im − lse_i), all Real
// without gaps. values null: only gradients in the values are wanted.
struct Cotangents {
  const void* values;   // C [M, c]
  const void* weights;  // g [n, c]
  int64_t c;
  const void* shift;  // [n]
  const void* lse;    // [n]
};
// to [n, width] in Real = scale Σ_m ∂s e_m; [M, width] in the items' type = scale Σ_i ∂s h_i;
// [M, c] in Real = Σ_i p g_i. work holds so many Reals.
enum class Gradient { users, items, values };
int64_t gradient_work(const Catalogue& catalogue, int64_t c, Gradient of);
const char* catalogue_gradient(const Catalogue& catalogue, const Cotangents& from, Gradient of,
                               void* work, void* to, void* stream);

// Of each chunk of the items the k highest scores (scale 1) of each user and their items, [lists,
// n, k], highest first, of equal ones the lower item first; −∞ and −1 where there are fewer. Chunks
// are in the items' order.
int64_t top_lists(const Catalogue& catalogue, int64_t k);
const char* catalogue_top(const Catalogue& catalogue, int64_t k, void* scores, int64_t* items,
                          void* stream);

}  // namespace fudlr::gpu
