// The decoder's kernels for bfloat16: a few rows at a time are widened to float32 in cache, the
// kernels of float32 run on them, and each result is rounded once.
#include "cpu/attention_kernel.h"
#include "cpu/decoder_kernel.h"
#include "cpu/tile.h"

namespace fudlr::FUDLR_ISA {
namespace {

using In = Lines<const Bfloat16>;
using Out = Lines<Bfloat16>;

constexpr int64_t kNumbers = 4096;  // of one array, widened at a time

// Some rows of an array in float32, without gaps.
class Rows {
 public:
  // Those from `first` on; none of an array that is absent.
  Lines<const float> read(In rows, int64_t first, int64_t count, int64_t width) {
    if (rows.data == nullptr) return {nullptr, 0};
    const Lines<float> to = room(count, width);
    for (int64_t t = 0; t < count; ++t) {
      const Bfloat16* from = rows.at(first + t);
      float* row = to.at(t);
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) row[i] = widen(from[i]);
    }
    return {to.data, to.stride};
  }
  // Room for results, which are then written.
  Lines<float> room(int64_t count, int64_t width) {
    count_ = count;
    width_ = width;
    return {numbers_ = memory_.get(count * width), width};
  }
  void write(Out rows, int64_t first) const {
    for (int64_t t = 0; t < count_; ++t) {
      const float* from = numbers_ + t * width_;
      Bfloat16* row = rows.at(first + t);
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) narrow(from[i], row[i]);
    }
  }

 private:
  Scratch<float> memory_;
  float* numbers_ = nullptr;
  int64_t count_ = 0, width_ = 0;
};

// Calls use(first, count) for runs of positions, each of `width` numbers in the widest array.
template <typename Use>
void for_runs(int64_t begin, int64_t end, int64_t width, Use use) {
  const int64_t each = width < kNumbers ? kNumbers / (width > 0 ? width : 1) : 1;
  for (int64_t t = begin; t < end; t += each) use(t, min(each, end - t));
}

void norm(In x, In added, const Bfloat16* weight, double eps, int64_t width, int64_t begin,
          int64_t end, Out sum, Out y, float* scale) {
  Rows weights, of_x, of_added, of_sum, of_y;
  const float* w = weights.read({weight, 0}, 0, 1, width).data;
  for_runs(begin, end, width, [&](int64_t t, int64_t count) {
    const Lines<float> total =
        added.data == nullptr ? Lines<float>{nullptr, 0} : of_sum.room(count, width);
    decoder.f32.norm(of_x.read(x, t, count, width), of_added.read(added, t, count, width), w, eps,
                     width, 0, count, total, of_y.room(count, width), scale + t);
    of_y.write(y, t);
    if (total.data != nullptr) of_sum.write(sum, t);
  });
}

void norm_tangent(const NormInput<Bfloat16>& in, In dx, int64_t k, int64_t begin, int64_t end,
                  Out dy) {
  Rows weights, of_x, of_dx, of_dy;
  const int64_t width = in.width;
  const float* w = weights.read({in.weight, 0}, 0, 1, width).data;
  for_runs(begin, end, width * k, [&](int64_t t, int64_t count) {
    decoder.f32.norm_tangent({of_x.read(in.x, t, count, width), w, in.scale + t, width},
                             of_dx.read(dx, t * k, count * k, width), k, 0, count,
                             of_dy.room(count * k, width));
    of_dy.write(dy, t * k);
  });
}

void norm_backward(const NormInput<Bfloat16>& in, In grads, In added, In delta, In dx, int64_t k,
                   int64_t begin, int64_t end, Out result) {
  Rows weights, of_x, of_grads, of_added, of_delta, of_dx, of_result;
  const int64_t width = in.width;
  const float* w = weights.read({in.weight, 0}, 0, 1, width).data;
  for_runs(begin, end, width * k, [&](int64_t t, int64_t count) {
    decoder.f32.norm_backward(
        {of_x.read(in.x, t, count, width), w, in.scale + t, width},
        of_grads.read(grads, t * k, count * k, width),
        of_added.read(added, t * k, count * k, width), of_delta.read(delta, t, count, width),
        of_dx.read(dx, t * k, count * k, width), k, 0, count, of_result.room(count * k, width));
    of_result.write(result, t * k);
  });
}

void swiglu(In gu, int64_t width, int64_t begin, int64_t end, Out a) {
  Rows of_gu, of_a;
  for_runs(begin, end, 2 * width, [&](int64_t t, int64_t count) {
    decoder.f32.swiglu(of_gu.read(gu, t, count, 2 * width), width, 0, count,
                       of_a.room(count, width));
    of_a.write(a, t);
  });
}

void swiglu_tangent(In gu, In dgu, int64_t width, int64_t k, int64_t begin, int64_t end, Out da) {
  Rows of_gu, of_dgu, of_da;
  for_runs(begin, end, 2 * width * k, [&](int64_t t, int64_t count) {
    decoder.f32.swiglu_tangent(of_gu.read(gu, t, count, 2 * width),
                               of_dgu.read(dgu, t * k, count * k, 2 * width), width, k, 0, count,
                               of_da.room(count * k, width));
    of_da.write(da, t * k);
  });
}

void swiglu_backward(In gu, In grads, In delta, In dgu, int64_t width, int64_t k, int64_t begin,
                     int64_t end, Out result) {
  Rows of_gu, of_grads, of_delta, of_dgu, of_result;
  for_runs(begin, end, 2 * width * k, [&](int64_t t, int64_t count) {
    decoder.f32.swiglu_backward(
        of_gu.read(gu, t, count, 2 * width), of_grads.read(grads, t * k, count * k, width),
        of_delta.read(delta, t, count, width), of_dgu.read(dgu, t * k, count * k, 2 * width), width,
        k, 0, count, of_result.room(count * k, 2 * width));
    of_result.write(result, t * k);
  });
}

void rotate(Out x, In cos, In sin, int64_t heads, int64_t width, bool inverse, int64_t k,
            int64_t begin, int64_t end) {
  Rows of_x, of_cos, of_sin;
  const int64_t wide = heads * width;
  for_runs(begin, end, wide * k, [&](int64_t t, int64_t count) {
    of_x.read({x.data, x.stride}, t * k, count * k, wide);
    const Lines<float> rows = of_x.room(count * k, wide);  // the same, to be written
    decoder.f32.rotate(rows, of_cos.read(cos, t, count, width), of_sin.read(sin, t, count, width),
                       heads, width, inverse, k, 0, count);
    of_x.write(x, t * k);
  });
}

// One task's sample and key head as a batch of its own.
class Task {
 public:
  Task(const AttentionShape& shape, int64_t task) {
    const int64_t sample = task / shape.key_heads, group = shape.heads / shape.key_heads;
    key_head_ = task % shape.key_heads;
    first_query_ = shape.query_offsets[sample];
    first_key_ = shape.key_offsets[sample];
    queries_[1] = shape.query_offsets[sample + 1] - first_query_;
    keys_[1] = shape.key_offsets[sample + 1] - first_key_;
    width_ = shape.width;
    wide_ = group * shape.width;
    this->shape = {group, 1, width_, shape.scale, queries_, keys_, shape.limits + first_query_};
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  Lines<const float> queries(Rows& rows, In of, int64_t k = 1) const {
    return rows.read(columns(of, wide_), first_query_ * k, queries_[1] * k, wide_);
  }
  Lines<const float> keys(Rows& rows, In of, int64_t k = 1) const {
    return rows.read(columns(of, width_), first_key_ * k, keys_[1] * k, width_);
  }
  Lines<float> queries(Rows& rows, int64_t k = 1) const {
    return rows.room(queries_[1] * k, wide_);
  }
  Lines<float> keys(Rows& rows, int64_t k) const { return rows.room(keys_[1] * k, width_); }
  void write_queries(const Rows& rows, Out to, int64_t k = 1) const {
    rows.write(columns(to, wide_), first_query_ * k);
  }
  void write_keys(const Rows& rows, Out to, int64_t k) const {
    rows.write(columns(to, width_), first_key_ * k);
  }

  AttentionShape shape;

 private:
  template <typename Number>
  Lines<Number> columns(Lines<Number> lines, int64_t width) const {
    return {lines.data == nullptr ? nullptr : lines.data + key_head_ * width, lines.stride};
  }
  int64_t key_head_, first_query_, first_key_, width_, wide_;
  int64_t queries_[2] = {0, 0}, keys_[2] = {0, 0};
};

// Queries, keys and values of a task, or their tangents.
class Inputs {
 public:
  AttentionInput<float> read(const Task& task, const AttentionInput<Bfloat16>& in, int64_t k = 1) {
    return {task.queries(q_, in.q, k), task.keys(k_, in.k, k), task.keys(v_, in.v, k)};
  }

 private:
  Rows q_, k_, v_;
};

void forward(const AttentionShape& shape, const AttentionInput<Bfloat16>& in, int64_t begin,
             int64_t end, Out out) {
  Inputs inputs;
  Rows of_out;
  for (int64_t i = begin; i < end; ++i) {
    const Task task(shape, i);
    attention.f32.forward(task.shape, inputs.read(task, in), 0, 1, task.queries(of_out));
    task.write_queries(of_out, out);
  }
}

void tangent(const AttentionShape& shape, const AttentionInput<Bfloat16>& in,
             const AttentionInput<Bfloat16>& tangents, int64_t k, int64_t begin, int64_t end,
             Out out) {
  Inputs inputs, moved;
  Rows of_out;
  for (int64_t i = begin; i < end; ++i) {
    const Task task(shape, i);
    attention.f32.tangent(task.shape, inputs.read(task, in), moved.read(task, tangents, k), k, 0, 1,
                          task.queries(of_out, k));
    task.write_queries(of_out, out, k);
  }
}

void backward(const AttentionShape& shape, const AttentionInput<Bfloat16>& in, In grads, In delta,
              const AttentionInput<Bfloat16>& tangents, int64_t k, int64_t begin, int64_t end,
              const AttentionOutput<Bfloat16>& result) {
  Inputs inputs, moved;
  Rows of_grads, of_delta, to_q, to_k, to_v;
  for (int64_t i = begin; i < end; ++i) {
    const Task task(shape, i);
    attention.f32.backward(task.shape, inputs.read(task, in), task.queries(of_grads, grads, k),
                           task.queries(of_delta, delta), moved.read(task, tangents, k), k, 0, 1,
                           {task.queries(to_q, k), task.keys(to_k, k), task.keys(to_v, k)});
    task.write_queries(to_q, result.q, k);
    task.write_keys(to_k, result.k, k);
    task.write_keys(to_v, result.v, k);
  }
}

}  // namespace

const DecoderKernels<Bfloat16> decoder_bf16 = {
    norm, norm_tangent, norm_backward, swiglu, swiglu_tangent, swiglu_backward, rotate};
const AttentionKernels<Bfloat16> attention_bf16 = {forward, tangent, backward};

}  // namespace fudlr::FUDLR_ISA
