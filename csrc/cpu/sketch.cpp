// The ops of a recording on the CPU: tensors, threads and registration.

#include <algorithm>

#include "abi/library.h"
#include "abi/parallel.h"
#include "checks.h"
#include "cpu/choose.h"
#include "cpu/sketch_kernel.h"

namespace fudlr {
namespace {

void add_sketch(const Tensor& rows, const Tensor& left, const Tensor& right, const Tensor& offsets,
                const Tensor& directions, bool of_left, int64_t column) {
  constexpr const char* op = "add_sketch";
  const SampleShape shape = check_samples(op, left, right, offsets);
  const Tensor at = offsets.contiguous(), sides = directions.contiguous();
  check_offset_values(op, shape, at.const_data_ptr<int64_t>());
  const Dtype dtype = left.scalar_type();
  check_tensor(op, "directions", directions, {-1, of_left ? shape.left : shape.right}, dtype,
               "left", left);
  check_tensor(op, "rows", rows, {shape.samples, -1}, dtype, "left", left);
  const int64_t size = directions.size(0) * (of_left ? shape.right : shape.left);
  FUDLR_CHECK_VALUE(rows.stride(1) == 1 && column >= 0 && column + size <= rows.size(1), op,
                    ": a sketch of ", size, " numbers does not fit behind column ", column);
  const Tensor first = with_dense_rows(left), second = with_dense_rows(right);
  const SketchTable& table = FUDLR_TABLE(sketch);
  const auto run = [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    const SketchTask<Real> task{factor<Real>(first),          factor<Real>(second),
                                at.const_data_ptr<int64_t>(), sides.const_data_ptr<Real>(),
                                directions.size(0),           of_left};
    const int64_t work = shape.left * shape.right * shape.positions;
    const int64_t grain = kThreadWork * shape.samples / std::max<int64_t>(1, work);
    parallel_for(0, shape.samples, std::max<int64_t>(1, grain), [&](int64_t begin, int64_t end) {
      kernels.sketch(task, begin, end, rows.mutable_data_ptr<Real>() + column, rows.stride(0));
    });
  };
  if (shape.samples == 0 || size == 0) return;
  if (dtype == kDouble) return run(table.f64, double{});
  FUDLR_CHECK_VALUE(dtype == kFloat, op, " has no CPU kernel for ", dtype);
  run(table.f32, float{});
}

TwoTensors encode_rows(const Tensor& rows) {
  check_tensor("encode_rows", "rows", rows, {-1, -1}, kFloat, "rows", rows);
  const Tensor dense = rows.contiguous();
  const int64_t n = rows.size(0), p = rows.size(1);
  Tensor codes = empty({n, p}, rows, kChar);
  Tensor scales = empty({n, (p + 127) / 128}, rows);
  parallel_for(0, n, std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, p)),
               [&](int64_t begin, int64_t end) {
                 FUDLR_TABLE(sketch).encode(dense.const_data_ptr<float>(), begin, end, p,
                                            codes.mutable_data_ptr<int8_t>(),
                                            scales.mutable_data_ptr<float>());
               });
  return {codes, scales};
}

}  // namespace

FUDLR_LIBRARY_IMPL(fudlr_record, CPU, m) {
  m.impl<&add_sketch>("add_sketch");
  m.impl<&encode_rows>("encode_rows");
}

}  // namespace fudlr
