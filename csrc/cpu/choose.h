// What every family's host side needs to call its kernels: the table of the instruction set in use,
// the types to call it with, and rows that kernels can read.
#pragma once

#include "abi/errors.h"
#include "abi/tensor.h"
#include "cpu/isa.h"
#include "cpu/sample_outer_kernel.h"

// The instance of table `name` that was compiled for the instruction set in use.
#if defined(__x86_64__)
#define FUDLR_TABLE(name)                                       \
  (::fudlr::active_isa() == ::fudlr::Isa::avx512 ? avx512::name \
   : ::fudlr::active_isa() == ::fudlr::Isa::avx2 ? avx2::name   \
                                                 : portable::name)
#else
#define FUDLR_TABLE(name) portable::name
#endif

namespace fudlr {

// Multiply-adds below which another thread costs more than it saves.
constexpr int64_t kThreadWork = 1 << 17;

// Calls run(kernels, In{}, Real{}) for a dtype, out of a table of kernels for each.
template <typename Table, typename Run>
void dispatch(Dtype dtype, const Table& table, Run run) {
  if (dtype == kDouble) return run(table.f64, double{}, double{});
  if (dtype == kBFloat16) return run(table.bf16, Bfloat16{}, float{});
  FUDLR_CHECK_VALUE(dtype == kFloat, "fudlr_ext has no CPU kernel for ", dtype);
  run(table.f32, float{}, float{});
}

// Rows one after the other with any stride, the elements of a row without a gap.
inline Tensor with_dense_rows(const Tensor& factor) {
  return factor.size(1) <= 1 || factor.stride(1) == 1 ? factor : factor.contiguous();
}

template <typename In>
Factor<In> factor(const Tensor& rows) {
  return {static_cast<const In*>(rows.const_data_ptr()), rows.stride(0), rows.size(1)};
}

}  // namespace fudlr
