#include "checks.h"

namespace fudlr {
namespace {

void check_offsets(const char* op, const Tensor& left, const Tensor& offsets) {
  FUDLR_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == kLong, op,
              "offsets must be int64 of shape [n + 1]",
              text("they are ", offsets.scalar_type(), " of shape ", offsets.sizes()),
              "Give the row at which each sample starts, and the end of the last one");
  FUDLR_CHECK(offsets.device() == left.device(), op, "all arguments must be on one device",
              text("left is on ", left.device(), ", offsets on ", offsets.device()),
              "Move them to the same device");
}

void check_like(const char* op, const char* name, const char* shape_name, const Tensor& left,
                const Tensor& given, const Numbers& expected) {
  bool same_shape = given.dim() == expected.count + 1;
  for (int64_t i = 0; same_shape && i < expected.count; ++i) {
    same_shape = given.size(i + 1) == expected[i];
  }
  FUDLR_CHECK(same_shape, op,
              text(name, " must be ", shape_name, " with ", expected, " at the end"),
              text("their shape is ", given.sizes()), "Reshape them, one to a row");
  const Dtype wanted = result_type(left);
  FUDLR_CHECK(given.scalar_type() == wanted, op,
              text(name, " must be ", wanted, " where left is ", left.scalar_type()),
              text("they are ", given.scalar_type()), text("Convert them with .to(", wanted, ")"));
  FUDLR_CHECK(given.device() == left.device(), op, "all arguments must be on one device",
              text("left is on ", left.device(), ", ", name, " on ", given.device()),
              "Move them to the same device");
}

void check_seen(const char* op, int64_t n, int64_t count, const Tensor& offsets,
                const Tensor& items, const Tensor& like) {
  check_tensor(op, "seen_offsets", offsets, {n + 1}, kLong, "items", like);
  check_tensor(op, "seen_items", items, {-1}, kLong, "items", like);
  if (on_gpu(like)) return;
  const Tensor dense = offsets.contiguous();
  const int64_t* rows = dense.const_data_ptr<int64_t>();
  FUDLR_CHECK(rows[0] >= 0 && rows[n] <= items.numel(), op,
              text("seen_offsets must lie in 0 to ", items.numel(), ", the length of seen_items"),
              text("they run from ", rows[0], " to ", rows[n]),
              "Give where each user's items start, and the end of the last one's");
  for (int64_t i = 0; i < n; ++i) {
    FUDLR_CHECK(rows[i] <= rows[i + 1], op, "seen_offsets must never fall",
                text("number ", i, " is ", rows[i], " and the next is ", rows[i + 1]),
                "List the items user after user");
  }
  const Tensor listed = items.contiguous();
  const int64_t* numbers = listed.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < listed.numel(); ++j) {
    FUDLR_CHECK(numbers[j] >= 0 && numbers[j] < count, op,
                text("seen_items must be rows of items, 0 to ", count - 1),
                text("number ", j, " is ", numbers[j]), "Leave others out");
  }
}

}  // namespace

bool on_gpu([[maybe_unused]] const Tensor& tensor) {
#if defined(FUDLR_EMULATED)
  return true;
#else
  return tensor.is_cuda();
#endif
}

bool is_number(const Tensor& tensor) {
  const Dtype dtype = tensor.scalar_type();
  return dtype == kFloat || dtype == kDouble || dtype == kBFloat16 ||
         (dtype == kHalf && on_gpu(tensor));
}

Dtype result_type(const Tensor& left) { return left.scalar_type() == kDouble ? kDouble : kFloat; }

SampleShape check_samples(const char* op, const Tensor& left, const Tensor& right,
                          const Tensor& offsets) {
  FUDLR_CHECK(
      left.dim() == 2 && right.dim() == 2, op, "left and right must be [T, a] and [T, b] here",
      text("their shapes are ", left.sizes(), " and ", right.sizes()),
      "Flatten samples and positions to one dimension, or use the function in fudlr_ext.ops");
  FUDLR_CHECK(left.size(0) == right.size(0), op, "left and right must have the same positions",
              text("left has ", left.size(0), ", right has ", right.size(0)),
              "Pass the factors of the same forward and backward pass");
  const Dtype dtype = left.scalar_type();
  FUDLR_CHECK(is_number(left), op, "left must be float32, float64 or bfloat16, or float16 on a GPU",
              text("it is ", dtype, " on ", left.device()), "Convert it with .float()");
  FUDLR_CHECK(right.scalar_type() == dtype, op, "left and right must have one dtype",
              text("left is ", dtype, ", right is ", right.scalar_type()),
              "Convert one to the other's");
  FUDLR_CHECK(right.device() == left.device(), op, "all arguments must be on one device",
              text("left is on ", left.device(), ", right on ", right.device()),
              "Move them to the same device");
  check_offsets(op, left, offsets);
  return {offsets.size(0) - 1, left.size(0), left.size(1), right.size(1)};
}

void check_offset_values(const char* op, const SampleShape& shape, const int64_t* offsets) {
  FUDLR_CHECK(offsets[0] >= 0 && offsets[shape.samples] <= shape.positions, op,
              text("offsets must lie in 0 to ", shape.positions, ", the number of positions"),
              text("they run from ", offsets[0], " to ", offsets[shape.samples]),
              "Give the row at which each sample starts, and the end of the last one");
  for (int64_t i = 0; i < shape.samples; ++i) {
    FUDLR_CHECK(
        offsets[i] <= offsets[i + 1], op, "offsets must never fall",
        text("offsets[", i, "] is ", offsets[i], " and offsets[", i + 1, "] is ", offsets[i + 1]),
        "Sort the samples by where they start");
  }
}

void check_vectors(const char* op, const SampleShape& shape, const Tensor& left,
                   const Tensor& vectors) {
  check_like(op, "vectors", "[k, a, b]", left, vectors, {shape.left, shape.right});
}

void check_weights(const char* op, const SampleShape& shape, const Tensor& left,
                   const Tensor& weights) {
  check_like(op, "weights", "[w, n]", left, weights, {shape.samples});
}

void check_stored_rows(const char* op, const Tensor& rows, const OptionalTensor& scales) {
  const Dtype dtype = rows.scalar_type();
  FUDLR_CHECK(rows.dim() == 2, op, "rows must be [n, p]", text("their shape is ", rows.sizes()),
              "Flatten each row");
  FUDLR_CHECK(dtype == kChar || is_number(rows), op,
              "rows must be float32, float64, bfloat16 or int8 with scales, or float16 on a GPU",
              text("they are ", dtype, " on ", rows.device()), "Convert them with .float()");
  FUDLR_CHECK(scales.has_value() == (dtype == kChar), op, "int8 rows have scales, and no others do",
              text("rows are ", dtype, ", scales are ", scales ? "given" : "missing"),
              "Give both as they were stored");
  if (scales) {
    check_tensor(op, "scales", *scales, {rows.size(0), (rows.size(1) + 127) / 128}, kFloat, "rows",
                 rows);
  }
}

void check_catalogue(const char* op, const Tensor& users, const Tensor& items,
                     const OptionalTensor& seen_offsets, const OptionalTensor& seen_items) {
  FUDLR_CHECK(items.dim() == 2 && items.size(0) > 0, op, "items must be [M, w] with M > 0",
              text("their shape is ", items.sizes()), "Give one row for each");
  FUDLR_CHECK(
      is_number(items), op, "items must be float32, float64 or bfloat16, or float16 on a GPU",
      text("they are ", items.scalar_type(), " on ", items.device()), "Convert them with .float()");
  check_tensor(op, "users", users, {-1, items.size(1)}, result_type(items), "items", items);
  FUDLR_CHECK(seen_offsets.has_value() == seen_items.has_value(), op,
              "seen_offsets and seen_items go together",
              text("only seen_", seen_offsets ? "offsets" : "items", " are given"),
              "Give both or none");
  if (seen_offsets) {
    check_seen(op, users.size(0), items.size(0), *seen_offsets, *seen_items, items);
  }
}

void check_top(const char* op, int64_t k, const Tensor& items) {
  FUDLR_CHECK(k >= 0 && k <= items.size(0), op,
              text("k must lie in 0 to ", items.size(0), ", the number of items"),
              text("it is ", k), "Ask for fewer");
}

void check_tensor(const char* op, const char* name, const Tensor& given, const Numbers& expected,
                  Dtype wanted, const char* like_name, const Tensor& like) {
  bool fits = given.dim() == expected.count;
  for (int64_t i = 0; fits && i < expected.count; ++i) {
    fits = expected[i] < 0 || given.size(i) == expected[i];
  }
  FUDLR_CHECK(fits, op, text(name, " must have the shape ", expected, ", -1 being any size"),
              text("their shape is ", given.sizes()), "Reshape them, one to a row");
  FUDLR_CHECK(given.scalar_type() == wanted, op,
              text(name, " must be ", wanted, " where ", like_name, " are ", like.scalar_type()),
              text("they are ", given.scalar_type()), text("Convert them with .to(", wanted, ")"));
  FUDLR_CHECK(given.device() == like.device(), op, "all arguments must be on one device",
              text(like_name, " is on ", like.device(), ", ", name, " on ", given.device()),
              "Move them to the same device");
}

}  // namespace fudlr
