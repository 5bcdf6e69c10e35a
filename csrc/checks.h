// Argument checks, once, so that every device fails in the same words.
#pragma once

#include <ATen/core/Tensor.h>

namespace fudlr {

// The shapes that the sample_* ops share, read from checked arguments.
//
// Positions of sample i are rows offsets[i] .. offsets[i+1] of the packed left [T, a] and
// right [T, b]; padded [n, t, ...] tensors arrive here already as packed views.
struct SampleShape {
  int64_t samples;    // n
  int64_t positions;  // T
  int64_t left;       // a
  int64_t right;      // b
};

// The dtype of every result, and of vectors and weights: that of left, and float32 for bfloat16,
// in which the products are accumulated.
at::ScalarType result_type(const at::Tensor& left);

// Checks left, right and offsets of `op`; throws with what was expected, what came and the remedy.
SampleShape check_samples(const char* op, const at::Tensor& left, const at::Tensor& right,
                          const at::Tensor& offsets);

// Checks that the offsets [n + 1], in host memory, rise within 0 .. T.
void check_offset_values(const char* op, const SampleShape& shape, const int64_t* offsets);

// Checks that `vectors` is [k, a, b] in the result's dtype and on the device of left.
void check_vectors(const char* op, const SampleShape& shape, const at::Tensor& left,
                   const at::Tensor& vectors);

// Checks that `projection` is [q, width of `side`] in the result's dtype and on the device of left.
void check_projection(const char* op, const char* side, int64_t width, const at::Tensor& left,
                      const at::Tensor& projection);

// Checks that `weights` is [w, n] in the result's dtype and on the device of left.
void check_weights(const char* op, const SampleShape& shape, const at::Tensor& left,
                   const at::Tensor& weights);

}  // namespace fudlr
