// Argument checks, once, so that every device fails in the same words.
#pragma once

#include <initializer_list>

#include "abi/errors.h"
#include "abi/tensor.h"

// "op: what was asked: what was found. What to do." Python sees a ValueError.
#define FUDLR_CHECK(condition, op, asked, found, remedy) \
  FUDLR_CHECK_VALUE(condition, op, ": ", asked, ": ", found, ". ", remedy)

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

// The dtype of every result, and of vectors and weights: float64 for float64, and float32 for all
// others, in which their products are accumulated.
Dtype result_type(const Tensor& left);

// Whether kernels for GPUs take this tensor; their emulation (tests/emu/) has them on the CPU. The
// host cannot look at numbers there without waiting for the device: the kernels do.
bool on_gpu(const Tensor& tensor);

// Whether kernels take numbers of this tensor's dtype: float32, float64 and bfloat16, and on a GPU
// float16.
bool is_number(const Tensor& tensor);

// Checks left, right and offsets of `op`; throws with what was expected, what came and the remedy.
SampleShape check_samples(const char* op, const Tensor& left, const Tensor& right,
                          const Tensor& offsets);

// Checks that the offsets [n + 1], in host memory, rise within 0 .. T.
void check_offset_values(const char* op, const SampleShape& shape, const int64_t* offsets);

// Checks that `vectors` is [k, a, b] in the result's dtype and on the device of left.
void check_vectors(const char* op, const SampleShape& shape, const Tensor& left,
                   const Tensor& vectors);

// Checks that `weights` is [w, n] in the result's dtype and on the device of left.
void check_weights(const char* op, const SampleShape& shape, const Tensor& left,
                   const Tensor& weights);

// the decoder's ops: rows [T, width] of what is_number() takes, in any stride between rows, and
// arrays of tangents with k rows a position.

// k for an array of tangents of `primal`.
int64_t tangents_per_row(const char* op, const Tensor& primal, const Tensor& tangents);

// Rows of `width` numbers to be written, and `spare` more beside them that are left as they are;
// raises where those are fewer than none.
Tensor with_spare(const char* op, int64_t rows, int64_t width, int64_t spare, const Tensor& like);

// Checks rows [T, width] of at least one column, and a weight for each.
void check_norm(const char* op, const Tensor& x, const Tensor& weight);

// An argument by its name; one that was left out is no tensor.
struct Named {
  const char* name;
  const Tensor* tensor;
  Named(const char* called, const Tensor& given) : name(called), tensor(&given) {}
  Named(const char* called, const OptionalTensor& given)
      : name(called), tensor(given ? &*given : nullptr) {}
};

// Checks that each that is given has this shape and the dtype and device of `like`, and that its
// rows, and those of `like`, have no gaps within.
void check_rows(const char* op, const Tensor& like, std::initializer_list<Named> given,
                int64_t rows, int64_t width);

// Checks rows [g | u] of an even number of columns; returns half of them.
int64_t check_gated(const char* op, const Tensor& gu);

// Checks that x has k rows a position and whole heads of an even width above 0, that of cos and
// sin; returns k.
int64_t check_rotation(const char* op, const Tensor& x, const Tensor& cos, const Tensor& sin);

// Checks that `vector` has `size` numbers like those of `like`.
void check_vector(const char* op, const char* name, const Tensor& like, const Tensor& vector,
                  int64_t size);

// Checks that `scale` has `rows` numbers of the dtype that numbers like those of `like` are summed
// in.
void check_scale(const char* op, const Tensor& like, const Tensor& scale, int64_t rows);

// Checks that both or none are given.
void check_together(const char* op, const char* first, bool has_first, const char* second,
                    bool has_second);

// Checks queries, keys and values, the offsets of their samples, and how many keys a query sees.
void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& query_offsets, const Tensor& key_offsets, const Tensor& limits,
                     int64_t heads, int64_t key_heads);

// Checks the tangents of checked queries, keys and values; returns how many there are a position.
int64_t check_attention_tangents(const char* op, const Tensor& q, const Tensor& k, const Tensor& dq,
                                 const Tensor& dk, const Tensor& dv);

// Checks the cotangents, and what their derivative is taken of and along; returns how many there
// are a position.
int64_t check_attention_backward(const char* op, const Tensor& q, const Tensor& k,
                                 const Tensor& grads, const OptionalTensor& delta,
                                 const OptionalTensor& dq, const OptionalTensor& dk,
                                 const OptionalTensor& dv);

// Rows for the cotangents of keys and values, and of the queries where they have as many: side by
// side, as the products that follow want them, with the spare columns beside them.
struct AttentionCotangents {
  Tensor q, k, v;
};
AttentionCotangents attention_cotangents(const char* op, const Tensor& q, const Tensor& k,
                                         int64_t count, int64_t spare);

// Checks stored rows [n, p] and their scales, which int8 rows have and no others.
void check_stored_rows(const char* op, const Tensor& rows, const OptionalTensor& scales);

// Checks users [n, w], items [M, w] with M > 0, and which items each user has seen.
void check_catalogue(const char* op, const Tensor& users, const Tensor& items,
                     const OptionalTensor& seen_offsets, const OptionalTensor& seen_items);

// Checks that the catalogue has `k` items.
void check_top(const char* op, int64_t k, const Tensor& items);

// Checks that `given`, called `name`, has the expected sizes (-1: any), the dtype `wanted`, and the
// device of `like`, which is called `like_name`.
void check_tensor(const char* op, const char* name, const Tensor& given, const Numbers& expected,
                  Dtype wanted, const char* like_name, const Tensor& like);

}  // namespace fudlr
