// The types of numbers that kernels are launched for.
#pragma once

namespace fudlr::gpu {

enum class Number { f32, f64, bf16, f16, int8 };

}  // namespace fudlr::gpu
