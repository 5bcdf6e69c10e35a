// The ops of a recording on the CPU: tensors, threads and registration.

#include <algorithm>

#include "abi/library.h"
#include "abi/parallel.h"
#include "checks.h"
#include "cpu/choose.h"
#include "cpu/sketch_kernel.h"

namespace fudlr {
namespace {

// [T, a] of a factor with any number of dimensions before its last.
Tensor flat_rows(const Tensor& factor) {
  if (factor.dim() <= 2) return factor.dim() == 2 ? with_dense_rows(factor) : factor;
  const Tensor dense = factor.contiguous();
  const int64_t width = dense.size(dense.dim() - 1);
  return dense.viewed({dense.numel() / std::max<int64_t>(1, width), width}, {width, 1});
}

Tensor even_offsets(const Tensor& like, int64_t samples, int64_t positions) {
  Tensor made = empty({samples + 1}, like, kLong);
  int64_t* at = made.mutable_data_ptr<int64_t>();
  const int64_t each = positions / std::max<int64_t>(1, samples);
  for (int64_t i = 0; i <= samples; ++i) at[i] = i * each;
  return made;
}

// A matrix's entry in the table: where its P lies in the directions, how many rows P has, whether
// it is of the left factor, and the column that its sketch begins at.
struct Entry {
  int64_t start, count, of_left, column;
};

void add_sketch(const Tensor& rows, const Tensor& left, const Tensor& right,
                const OptionalTensor& offsets, const Tensor& directions, const Entry& entry) {
  constexpr const char* op = "add_sketches";
  const int64_t positions = left.dim() == 2 ? left.size(0) : 0;
  const Tensor at = offsets ? offsets->contiguous() : even_offsets(rows, rows.size(0), positions);
  const SampleShape shape = check_samples(op, left, right, at);
  check_offset_values(op, shape, at.const_data_ptr<int64_t>());
  const Dtype dtype = left.scalar_type();
  check_tensor(op, "rows", rows, {shape.samples, -1}, dtype, "left", left);
  const bool of_left = entry.of_left != 0;
  const int64_t size = entry.count * (of_left ? shape.right : shape.left);
  const int64_t end = entry.start + entry.count * (of_left ? shape.left : shape.right);
  FUDLR_CHECK_VALUE(entry.start >= 0 && entry.count >= 0 && end <= directions.numel(), op,
                    ": there are no ", entry.count, " directions behind number ", entry.start);
  FUDLR_CHECK_VALUE(entry.column >= 0 && entry.column + size <= rows.size(1), op, ": a sketch of ",
                    size, " numbers does not fit behind column ", entry.column);
  if (shape.samples == 0 || size == 0) return;
  const auto run = [&](const auto& kernels, auto real) {
    using Real = decltype(real);
    const SketchTask<Real> task{factor<Real>(left),
                                factor<Real>(right),
                                at.const_data_ptr<int64_t>(),
                                directions.const_data_ptr<Real>() + entry.start,
                                entry.count,
                                of_left};
    Real* to = rows.mutable_data_ptr<Real>() + entry.column;
    const int64_t work = shape.left * shape.right * shape.positions;
    const int64_t grain = kThreadWork * shape.samples / std::max<int64_t>(1, work);
    parallel_for(0, shape.samples, std::max<int64_t>(1, grain), [&](int64_t begin, int64_t end) {
      kernels.sketch(task, begin, end, to, rows.stride(0));
    });
  };
  const SketchTable& table = FUDLR_TABLE(sketch);
  if (dtype == kDouble) return run(table.f64, double{});
  FUDLR_CHECK_VALUE(dtype == kFloat, op, " has no CPU kernel for ", dtype);
  run(table.f32, float{});
}

void add_sketches(const Tensor& rows, const Tensors& left, const Tensors& right,
                  const OptionalTensor& offsets, const Tensor& directions, const Tensor& table) {
  constexpr const char* op = "add_sketches";
  FUDLR_CHECK_VALUE(left.size() == right.size(), op, ": there are ", left.size(), " left and ",
                    right.size(), " right factors");
  const auto count = static_cast<int64_t>(left.size());
  check_tensor(op, "rows", rows, {-1, -1}, rows.scalar_type(), "rows", rows);
  check_tensor(op, "directions", directions, {-1}, rows.scalar_type(), "rows", rows);
  check_tensor(op, "table", table, {count, 4}, kLong, "rows", rows);
  FUDLR_CHECK_VALUE(rows.stride(1) == 1, op, ": the numbers of a row must have no gaps between");
  const Tensor sides = directions.contiguous(), entries = table.contiguous();
  const int64_t* entry = entries.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i, entry += 4) {
    add_sketch(rows, flat_rows(left[i]), flat_rows(right[i]), offsets, sides,
               {entry[0], entry[1], entry[2], entry[3]});
  }
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
  m.impl<&add_sketches>("add_sketches");
  m.impl<&encode_rows>("encode_rows");
}

}  // namespace fudlr
