// Argument checks of the ops on a catalogue.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "checks.h"

namespace fudlr {
namespace {

#define FUDLR_CHECK(condition, op, asked, found, remedy) \
  TORCH_CHECK_VALUE(condition, op, ": ", asked, ": ", found, ". ", remedy)

void check_seen(const char* op, int64_t n, int64_t count, const at::Tensor& offsets,
                const at::Tensor& items, const at::Tensor& like) {
  check_tensor(op, "seen_offsets", offsets, {n + 1}, at::kLong, "items", like);
  check_tensor(op, "seen_items", items, {-1}, at::kLong, "items", like);
  if (on_gpu(like)) return;
  const at::Tensor dense = offsets.contiguous();
  const int64_t* rows = dense.const_data_ptr<int64_t>();
  FUDLR_CHECK(
      rows[0] >= 0 && rows[n] <= items.numel(), op,
      c10::str("seen_offsets must lie in 0 to ", items.numel(), ", the length of seen_items"),
      c10::str("they run from ", rows[0], " to ", rows[n]),
      "Give where each user's items start, and the end of the last one's");
  for (int64_t i = 0; i < n; ++i) {
    FUDLR_CHECK(rows[i] <= rows[i + 1], op, "seen_offsets must never fall",
                c10::str("number ", i, " is ", rows[i], " and the next is ", rows[i + 1]),
                "List the items user after user");
  }
  const at::Tensor listed = items.contiguous();
  const int64_t* numbers = listed.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < listed.numel(); ++j) {
    FUDLR_CHECK(numbers[j] >= 0 && numbers[j] < count, op,
                c10::str("seen_items must be rows of items, 0 to ", count - 1),
                c10::str("number ", j, " is ", numbers[j]), "Leave others out");
  }
}

// Checks that `rows` [., w], called `name`, are at least one, of a dtype that the kernels know.
void check_softmax_rows(const char* op, const char* name, const char* shape,
                        const at::Tensor& rows) {
  FUDLR_CHECK(rows.dim() == 2 && rows.size(0) > 0, op, c10::str(name, " must be ", shape),
              c10::str("their shape is ", rows.sizes()), "Give one row for each");
  FUDLR_CHECK(is_number(rows), op,
              c10::str(name, " must be float32, float64 or bfloat16, or float16 on a GPU"),
              c10::str("they are ", rows.scalar_type(), " on ", rows.device()),
              "Convert them with .float()");
}

}  // namespace

void check_catalogue(const char* op, const at::Tensor& users, const at::Tensor& items,
                     const std::optional<at::Tensor>& seen_offsets,
                     const std::optional<at::Tensor>& seen_items) {
  check_softmax_rows(op, "items", "[M, w] with M > 0", items);
  check_tensor(op, "users", users, {-1, items.size(1)}, result_type(items), "items", items);
  FUDLR_CHECK(seen_offsets.has_value() == seen_items.has_value(), op,
              "seen_offsets and seen_items go together",
              c10::str("only seen_", seen_offsets ? "offsets" : "items", " are given"),
              "Give both or none");
  if (seen_offsets) {
    check_seen(op, users.size(0), items.size(0), *seen_offsets, *seen_items, items);
  }
}

void check_cross_entropy(const char* op, const at::Tensor& hidden, const at::Tensor& weight,
                         const at::Tensor& targets) {
  check_softmax_rows(op, "weight", "[V, d] with V > 0", weight);
  check_tensor(op, "hidden", hidden, {-1, weight.size(1)}, result_type(weight), "weight", weight);
  check_tensor(op, "targets", targets, {hidden.size(0)}, at::kLong, "weight", weight);
  if (on_gpu(weight)) return;
  const at::Tensor listed = targets.contiguous();
  const int64_t* numbers = listed.const_data_ptr<int64_t>();
  const int64_t count = weight.size(0);
  for (int64_t i = 0; i < listed.numel(); ++i) {
    FUDLR_CHECK(
        numbers[i] == kIgnoredTarget || (numbers[i] >= 0 && numbers[i] < count), op,
        c10::str("targets must be rows of weight, 0 to ", count - 1, ", or ", kIgnoredTarget),
        c10::str("number ", i, " is ", numbers[i]), "Look whether the tokenizer is the model's");
  }
}

void check_top(const char* op, int64_t k, const at::Tensor& items) {
  FUDLR_CHECK(k >= 0 && k <= items.size(0), op,
              c10::str("k must lie in 0 to ", items.size(0), ", the number of items"),
              c10::str("it is ", k), "Ask for fewer");
}

}  // namespace fudlr
