// Argument checks of the ops on a mask.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "checks.h"

namespace fudlr {

#define FUDLR_CHECK(condition, op, asked, found, remedy) \
  TORCH_CHECK_VALUE(condition, op, ": ", asked, ": ", found, ". ", remedy)

void check_influence(
    const char* op, const at::Tensor& influence,
    std::initializer_list<std::pair<const char*, std::reference_wrapper<const at::Tensor>>> state) {
  FUDLR_CHECK(influence.dim() == 2, op, "influence must be [n, k]",
              c10::str("its shape is ", influence.sizes()), "Give one row a sample");
  FUDLR_CHECK(is_number(influence), op,
              "influence must be float32, float64 or bfloat16, or float16 on a GPU",
              c10::str("it is ", influence.scalar_type(), " on ", influence.device()),
              "Convert it with .float()");
  for (const auto& [name, given] : state) {
    const at::Tensor& tensor = given;
    check_tensor(op, name, tensor, {influence.size(0)}, result_type(influence), "influence",
                 influence);
    FUDLR_CHECK(tensor.is_contiguous(), op, c10::str(name, " must have no gaps between numbers"),
                c10::str("its stride is ", tensor.strides()), "Make it anew with .contiguous()");
  }
}

void check_adam(const char* op, int64_t step, double decay_first, double decay_second, double eps,
                double limit, const at::Tensor& logits) {
  FUDLR_CHECK(step >= 1, op, "step must count from 1", c10::str("it is ", step),
              "Give the number of this step, which Adam's corrections hang on");
  FUDLR_CHECK(decay_first >= 0 && decay_first < 1 && decay_second >= 0 && decay_second < 1, op,
              "both decays must lie in [0, 1)",
              c10::str("they are ", decay_first, " and ", decay_second), "Take 0.9 and 0.99");
  const bool single = logits.scalar_type() == at::kFloat;
  FUDLR_CHECK((single ? static_cast<double>(static_cast<float>(eps)) : eps) > 0, op,
              c10::str("eps must be above 0 in ", logits.scalar_type()), c10::str("it is ", eps),
              "A gradient of 0 would be divided by it; take 1e-8, or 1e-30 to step alike at all "
              "scales");
  FUDLR_CHECK(limit > 0, op, "limit must be above 0", c10::str("it is ", limit),
              "Give the largest size of a logit, 20 for instance, or infinity");
}

}  // namespace fudlr
