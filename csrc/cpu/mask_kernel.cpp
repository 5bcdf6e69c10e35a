// m = σ(z), d = m (1 − m), g = d (price + Σ_j w_j s_j), Adam (Kingma and Ba 2015) on z, and the
// sums over samples at the new z, in one pass: the totals Σ m s_j that the objective's gradient of
// the next step hangs on are formed while this step's logits are in L1.
//
// With t = e^(−|z|) and r = 1 / (1 + t), σ is r or t r and d is t r², exact in both tails, where
// m (1 − m) would have lost all digits.
//
// Sums are formed in Real over a block and in float64 across blocks, in the samples' order.
#include "cpu/mask_kernel.h"

#include "cpu/panels.h"
#include "cpu/vexp.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kBlock = 256;

template <typename Real>
struct Sigmoid {
  Vector<Real> mask, slope;
};

template <typename Real>
inline Sigmoid<Real> sigmoid(Vector<Real> z) {
  const Vector<Real> zero{};
  const Vector<Real> x = z < zero ? z : zero - z;
  const Vector<Real> t =
      vexp_within<Real>(x < Bits<Real>::smallest ? zero + Bits<Real>::smallest : x);
  const Vector<Real> r = (zero + Real(1)) / (t + Real(1));
  return {z < zero ? t * r : r, t * r * r};
}

inline float root_of(float x) { return __builtin_sqrtf(x); }
inline double root_of(double x) { return __builtin_sqrt(x); }
template <typename Real>
inline Vector<Real> root(Vector<Real> x) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kWidth<Real>; ++i) x[i] = root_of(x[i]);
  return x;
}
#if defined(__AVX512F__)
template <>
inline Vector<float> root<float>(Vector<float> x) {
  return reinterpret_cast<Vector<float>>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
}
template <>
inline Vector<double> root<double>(Vector<double> x) {
  return reinterpret_cast<Vector<double>>(_mm512_sqrt_pd(reinterpret_cast<__m512d>(x)));
}
#elif defined(__AVX2__)
template <>
inline Vector<float> root<float>(Vector<float> x) {
  return reinterpret_cast<Vector<float>>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
}
template <>
inline Vector<double> root<double>(Vector<double> x) {
  return reinterpret_cast<Vector<double>>(_mm256_sqrt_pd(reinterpret_cast<__m256d>(x)));
}
#endif

// A block of samples: their influences metric by metric, m and d (or g), zeros behind them.
template <typename In, typename Real>
class Block {
 public:
  explicit Block(const Influences<In>& influences)
      : from_(influences), metrics_(room_.get(influences.k * kBlock)) {}

  void set(int64_t first, int64_t count) {
    count_ = count;
    padded_ = blocks(count, kWidth<Real>) * kWidth<Real>;
    turn(from_.data + first * from_.stride, from_.stride, count, from_.k, metrics_, kBlock);
    for (int64_t j = 0; count < padded_ && j < from_.k; ++j) {
      for (int64_t t = count; t < padded_; ++t) metrics_[j * kBlock + t] = Real(0);
    }
  }

  // g at the logits logits_at(t), vector by vector; asks for the next block's influences meanwhile.
  template <typename LogitsAt>
  void set_gradients(const Real* weights, Real price, const In* next, LogitsAt logits_at) {
    if (from_.k == 4) return set_gradients_of<4>(weights, price, next, logits_at);
    set_gradients_of<0>(weights, price, next, logits_at);
  }

  Vector<Real> gradient(int64_t t) const { return load(slope_ + t); }

  // m and d at the logits logits_at(t); asks for the next block's influences where they are given.
  template <typename LogitsAt>
  void set_logits(const In* next, LogitsAt logits_at) {
    for (int64_t t = 0; t < padded_; t += kWidth<Real>) {
      if (next != nullptr) prefetch(next, t);
      const Sigmoid<Real> now = sigmoid<Real>(logits_at(t));
      store(mask_ + t, now.mask);
      store(slope_ + t, now.slope);
    }
    for (int64_t t = count_; t < padded_; ++t) mask_[t] = slope_[t] = Real(0);
  }

  void add_to(double* sums) const {
    Vector<Real> mask{}, slope{}, square{};
    for (int64_t t = 0; t < padded_; t += kWidth<Real>) {
      const Vector<Real> d = load(slope_ + t);
      mask += load(mask_ + t);
      slope += d;
      square += d * d;
    }
    add(mask, sums);
    add(slope, sums + 1);
    add(square, sums + 2);
    int64_t j = 0;
    for (; j + 4 <= from_.k; j += 4) add_metrics<4>(j, sums + kMaskSums + j);
    for (; j < from_.k; ++j) add_metrics<1>(j, sums + kMaskSums + j);
  }

  int64_t count() const { return count_; }
  int64_t padded() const { return padded_; }

 private:
  // What the next block has at t. Without, memory would be idle during a block's phases.
  void prefetch(const In* next, int64_t t) const {
    const auto* ahead = reinterpret_cast<const char*>(next + t * from_.stride);
    const int64_t bytes = kWidth<Real> * from_.stride * static_cast<int64_t>(sizeof(In));
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(ahead + byte);
  }

  template <int K, typename LogitsAt>
  void set_gradients_of(const Real* weights, Real price, const In* next, LogitsAt logits_at) {
    const int64_t k = K > 0 ? K : from_.k;
    for (int64_t t = 0; t < padded_; t += kWidth<Real>) {
      prefetch(next, t);
      Vector<Real> sum = Vector<Real>{} + price;
#pragma GCC unroll 4
      for (int64_t j = 0; j < k; ++j) sum += weights[j] * load(metrics_ + j * kBlock + t);
      store(slope_ + t, sigmoid<Real>(logits_at(t)).slope * sum);
    }
  }

  static void add(Vector<Real> sum, double* to) {
    Real lanes[kWidth<Real>];
    store(lanes, sum);
    *to += static_cast<double>(lanes_sum(lanes));
  }

  template <int C>
  void add_metrics(int64_t j, double* to) const {
    Vector<Real> changes[C], squares[C];
    for (int c = 0; c < C; ++c) changes[c] = squares[c] = Vector<Real>{};
    for (int64_t t = 0; t < padded_; t += kWidth<Real>) {
      const Vector<Real> mask = load(mask_ + t), slope = load(slope_ + t);
      const Vector<Real> square = slope * slope;
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const Vector<Real> s = load(metrics_ + (j + c) * kBlock + t);
        changes[c] += mask * s;
        squares[c] += square * s;
      }
    }
    for (int c = 0; c < C; ++c) {
      add(changes[c], to + c);
      add(squares[c], to + from_.k + c);
    }
  }

  const Influences<In>& from_;
  Scratch<Real> room_;
  Real* metrics_;  // [k, kBlock]
  int64_t count_ = 0;
  int64_t padded_ = 0;
  alignas(64) Real mask_[kBlock];
  alignas(64) Real slope_[kBlock];
};

// A vector of `data`, of whose numbers from `count` on there are none.
template <typename Real>
inline Vector<Real> load_part(const Real* data, int64_t t, int64_t count) {
  if (t + kWidth<Real> <= count) return load(data + t);
  Real lanes[kWidth<Real>] = {};
  std::memcpy(lanes, data + t, static_cast<size_t>(count - t) * sizeof(Real));
  return load(lanes);
}

template <typename Real>
inline void store_part(Real* data, int64_t t, int64_t count, Vector<Real> value) {
  if (t + kWidth<Real> <= count) return store(data + t, value);
  Real lanes[kWidth<Real>];
  store(lanes, value);
  std::memcpy(data + t, lanes, static_cast<size_t>(count - t) * sizeof(Real));
}

// Calls update(block, first sample), which gives a block its logits, and sums, for all blocks.
template <typename In, typename Real, typename Update>
void for_blocks(const Influences<In>& influences, int64_t begin, int64_t end, double* sums,
                Update update) {
  for (int64_t j = 0; j < kMaskSums + 2 * influences.k; ++j) sums[j] = 0;
  Block<In, Real> block(influences);
  for (int64_t first = begin; first < end; first += kBlock) {
    block.set(first, least(kBlock, end - first));
    update(block, first);
    block.add_to(sums);
  }
}

template <typename In, typename Real>
void step(const Influences<In>& influences, const MaskStep<Real>& task, Real shift, int64_t begin,
          int64_t end, double* sums) {
  // Phases of their own: in one, e^x, quotients and the root of a vector would wait for each other
  // longer than a CPU looks ahead.
  const auto update = [&](Block<In, Real>& block, int64_t start) {
    const int64_t count = block.count();
    Real* logits = task.logits + start;
    Real* firsts = task.first + start;
    Real* seconds = task.second + start;
    const auto moved = [&](int64_t t) { return load_part(logits, t, count) - shift; };
    block.set_gradients(task.weights, task.price,
                        influences.data + (start + kBlock) * influences.stride, moved);
    for (int64_t t = 0; t < block.padded(); t += kWidth<Real>) {
      __builtin_prefetch(logits + kBlock + t, 1);
      __builtin_prefetch(firsts + kBlock + t, 1);
      __builtin_prefetch(seconds + kBlock + t, 1);
      const Vector<Real> g = block.gradient(t);
      Vector<Real> first = load_part(firsts, t, count), second = load_part(seconds, t, count);
      first += (g - first) * task.fresh_first;
      second += (g * g - second) * task.fresh_second;
      Vector<Real> z = moved(t);
      z -= task.rate * first / (root<Real>(second * task.correction) + task.eps);
      z = z > task.limit ? Vector<Real>{} + task.limit : z;
      z = z < -task.limit ? Vector<Real>{} - task.limit : z;
      store_part(firsts, t, count, first);
      store_part(seconds, t, count, second);
      store_part(logits, t, count, z);
    }
    block.set_logits(nullptr, [&](int64_t t) { return load_part(logits, t, count); });
  };
  for_blocks<In, Real>(influences, begin, end, sums, update);
}

template <typename In, typename Real>
void sums_at(const Influences<In>& influences, const Real* logits, Real shift, int64_t begin,
             int64_t end, double* sums) {
  const auto update = [&](Block<In, Real>& block, int64_t start) {
    const Real* from = logits + start;
    const int64_t count = block.count();
    block.set_logits(influences.data + (start + kBlock) * influences.stride,
                     [&](int64_t t) { return load_part(from, t, count) - shift; });
  };
  for_blocks<In, Real>(influences, begin, end, sums, update);
}

template <typename In, typename Real>
constexpr MaskKernels<In, Real> kernels() {
  return {step<In, Real>, sums_at<In, Real>};
}

}  // namespace

const MaskTable mask_steps = {kernels<float, float>(), kernels<double, double>(),
                              kernels<Bfloat16, float>()};

}  // namespace fudlr::FUDLR_ISA
