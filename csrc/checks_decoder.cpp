// Argument checks of the decoder's ops.
#include <algorithm>

#include "checks.h"

namespace fudlr {
namespace {

// The device is that of the rows: a GPU's kernels look at the numbers themselves.
void check_offsets(const char* op, const char* name, const Tensor& offsets, int64_t rows,
                   const Tensor& like) {
  FUDLR_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == kLong &&
                  offsets.is_contiguous() && offsets.device() == like.device(),
              op, text(name, " must be int64 of shape [n + 1] on ", like.device()),
              text("they are ", offsets.scalar_type(), " of shape ", offsets.sizes(), " on ",
                   offsets.device()),
              "Give the row at which each sample starts, and the end of the last one");
  if (on_gpu(like)) return;
  const int64_t* data = offsets.const_data_ptr<int64_t>();
  const int64_t n = offsets.size(0) - 1;
  FUDLR_CHECK(data[0] == 0 && data[n] == rows && std::is_sorted(data, data + n + 1), op,
              text(name, " must rise from 0 to ", rows, ", the number of rows"),
              text("they run from ", data[0], " to ", data[n]), "Leave no row out");
}

void check_numbers(const char* op, const char* name, const Tensor& like, const Tensor& vector,
                   int64_t size, Dtype wanted) {
  FUDLR_CHECK(vector.dim() == 1 && vector.size(0) == size && vector.scalar_type() == wanted &&
                  vector.device() == like.device(),
              op, text(name, " must be ", size, " numbers of ", wanted),
              text("it is ", vector.scalar_type(), " of shape ", vector.sizes()),
              "Reshape or convert it");
}

}  // namespace

int64_t tangents_per_row(const char* op, const Tensor& primal, const Tensor& tangents) {
  FUDLR_CHECK(primal.dim() == 2 && tangents.dim() == 2, op, "rows [T, width] were expected",
              text("the shapes are ", primal.sizes(), " and ", tangents.sizes()),
              "Flatten samples and positions to one dimension");
  const int64_t rows = primal.size(0);
  const int64_t k = rows == 0 ? 1 : tangents.size(0) / rows;
  FUDLR_CHECK(k * rows == tangents.size(0), op,
              text("as many tangents were expected for each of ", rows, " positions"),
              text("there are ", tangents.size(0), " rows of them"),
              "Give k rows a position, one after the other");
  return k;
}

Tensor with_spare(const char* op, int64_t rows, int64_t width, int64_t spare, const Tensor& like) {
  FUDLR_CHECK(spare >= 0, op, "spare must not be negative", text("it is ", spare),
              "Give the number of columns to leave free");
  return empty({rows, width + spare}, like);
}

void check_rows(const char* op, const Tensor& like, std::initializer_list<Named> given,
                int64_t rows, int64_t width) {
  FUDLR_CHECK(is_number(like), op, "float32, float64 or bfloat16 was expected, or float16 on a GPU",
              text("it is ", like.scalar_type(), " on ", like.device()),
              "Convert it with .float()");
  FUDLR_CHECK(like.dim() == 2 && (like.size(1) <= 1 || like.stride(1) == 1), op,
              "rows [T, width] without gaps were expected",
              text("shape ", like.sizes(), ", strides ", like.strides()), "Use .contiguous()");
  for (const auto& [name, tensor] : given) {
    if (tensor == nullptr) continue;
    FUDLR_CHECK(tensor->dim() == 2 && tensor->size(0) == rows && tensor->size(1) == width, op,
                text(name, " must be [", rows, ", ", width, "]"),
                text("its shape is ", tensor->sizes()), "Give k rows a position");
    FUDLR_CHECK(
        tensor->scalar_type() == like.scalar_type() && tensor->device() == like.device() &&
            (tensor->size(1) <= 1 || tensor->stride(1) == 1),
        op, text(name, " must be ", like.scalar_type(), " rows without gaps, on ", like.device()),
        text("it is ", tensor->scalar_type(), " with strides ", tensor->strides(), " on ",
             tensor->device()),
        "Convert it, or use .contiguous()");
  }
}

void check_norm(const char* op, const Tensor& x, const Tensor& weight) {
  check_rows(op, x, {}, 0, 0);
  FUDLR_CHECK(x.size(1) > 0, op, "rows of at least one number were expected",
              text("the shape is ", x.sizes()), "Leave the norm out");
  check_vector(op, "weight", x, weight, x.size(1));
}

int64_t check_gated(const char* op, const Tensor& gu) {
  check_rows(op, gu, {}, 0, 0);
  FUDLR_CHECK(gu.size(1) % 2 == 0, op, "rows [g | u] of two equal halves were expected",
              text("the shape is ", gu.sizes()), "Put gate and up side by side");
  return gu.size(1) / 2;
}

int64_t check_rotation(const char* op, const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t k = tangents_per_row(op, cos, x), width = cos.size(1);
  check_rows(op, cos, {{"sin", sin}}, cos.size(0), width);
  FUDLR_CHECK(width > 0 && width % 2 == 0, op, "heads of an even width above 0 were expected",
              text("cos and sin have ", width, " columns"), "Give both halves' angles");
  check_rows(op, cos, {{"x", x}}, cos.size(0) * k, x.size(1) / width * width);
  return k;
}

void check_vector(const char* op, const char* name, const Tensor& like, const Tensor& vector,
                  int64_t size) {
  check_numbers(op, name, like, vector, size, like.scalar_type());
}

void check_scale(const char* op, const Tensor& like, const Tensor& scale, int64_t rows) {
  check_numbers(op, "scale", like, scale, rows, result_type(like));
}

void check_together(const char* op, const char* first, bool has_first, const char* second,
                    bool has_second) {
  FUDLR_CHECK(has_first == has_second, op,
              text(first, " and ", second, " go together, for a derivative of the backward"),
              text("only ", has_first ? first : second, " is given"), "Give both or none");
}

void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& query_offsets, const Tensor& key_offsets, const Tensor& limits,
                     int64_t heads, int64_t key_heads) {
  check_rows(op, q, {}, q.size(0), q.size(1));
  FUDLR_CHECK(heads > 0 && key_heads > 0 && heads % key_heads == 0 && q.size(1) % heads == 0, op,
              "heads must divide the queries' width, and the key heads the heads",
              text(heads, " heads, ", key_heads, " key heads, width ", q.size(1)),
              "Give the numbers of the model's configuration");
  check_rows(op, q, {{"k", k}, {"v", v}}, k.size(0), q.size(1) / heads * key_heads);
  check_offsets(op, "query_offsets", query_offsets, q.size(0), q);
  check_offsets(op, "key_offsets", key_offsets, k.size(0), q);
  FUDLR_CHECK(query_offsets.size(0) == key_offsets.size(0), op,
              "queries and keys of the same samples were expected",
              text("there are ", query_offsets.size(0) - 1, " and ", key_offsets.size(0) - 1),
              "Give every sample a place in both, if an empty one");
  FUDLR_CHECK(limits.dim() == 1 && limits.size(0) == q.size(0) && limits.scalar_type() == kLong &&
                  limits.is_contiguous() && limits.device() == q.device(),
              op, text("limits must be int64 on ", q.device(), ", one for each query"),
              text("they are ", limits.scalar_type(), " of shape ", limits.sizes(), " on ",
                   limits.device()),
              "Give the number of keys that each query sees");
  if (on_gpu(q)) return;
  const int64_t* seen = limits.const_data_ptr<int64_t>();
  const int64_t* from = query_offsets.const_data_ptr<int64_t>();
  const int64_t* keys = key_offsets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i + 1 < query_offsets.size(0); ++i) {
    const int64_t max_keys = keys[i + 1] - keys[i];
    int64_t min_keys = 1;
    for (int64_t t = from[i]; t < from[i + 1]; ++t) {
      FUDLR_CHECK(seen[t] >= min_keys && seen[t] <= max_keys, op,
                  "limits must lie in 1 to the sample's number of keys and never fall within it",
                  text("limits[", t, "] is ", seen[t], " after ", min_keys, ", of ", max_keys),
                  "Sort each sample's queries by their position");
      min_keys = seen[t];
    }
  }
}

int64_t check_attention_tangents(const char* op, const Tensor& q, const Tensor& k, const Tensor& dq,
                                 const Tensor& dk, const Tensor& dv) {
  const int64_t count = tangents_per_row(op, q, dq);
  check_rows(op, q, {{"dq", dq}}, q.size(0) * count, q.size(1));
  check_rows(op, k, {{"dk", dk}, {"dv", dv}}, k.size(0) * count, k.size(1));
  return count;
}

int64_t check_attention_backward(const char* op, const Tensor& q, const Tensor& k,
                                 const Tensor& grads, const OptionalTensor& delta,
                                 const OptionalTensor& dq, const OptionalTensor& dk,
                                 const OptionalTensor& dv) {
  const int64_t count = tangents_per_row(op, q, grads);
  check_rows(op, q, {{"grads", grads}, {"dq", dq}}, q.size(0) * count, q.size(1));
  check_rows(op, q, {{"delta", delta}}, q.size(0), q.size(1));
  check_rows(op, k, {{"dk", dk}, {"dv", dv}}, k.size(0) * count, k.size(1));
  check_together(op, "delta", delta.has_value(), "dq", dq.has_value());
  check_together(op, "dk", dk.has_value(), "dq", dq.has_value());
  check_together(op, "dv", dv.has_value(), "dq", dq.has_value());
  return count;
}

AttentionCotangents attention_cotangents(const char* op, const Tensor& q, const Tensor& k,
                                         int64_t count, int64_t spare) {
  const int64_t columns = q.size(1), narrow = k.size(1);
  const bool together = q.size(0) == k.size(0);
  const int64_t start = together ? columns : 0;
  const Tensor side = with_spare(op, k.size(0) * count, start + 2 * narrow, spare, q);
  return {together ? side.narrow(1, 0, columns) : with_spare(op, q.size(0) * count, columns, 0, q),
          side.narrow(1, start, narrow), side.narrow(1, start + narrow, narrow)};
}

}  // namespace fudlr
