// m = σ(z), d = m (1 − m), g = d (price + Σ_j w_j s_j), Adam (Kingma and Ba 2015) on z, and the
// sums Σ m, Σ d, Σ d², Σ m s_j and Σ d² s_j at the new z, in one pass over the influences s [n, k].
//
// With t = e^(−|z|) and r = 1 / (1 + t), σ is r or t r and d is t r², exact in both tails, where
// m (1 − m) would have lost all digits.
//
// Who does what. A block of 256 threads takes chunks of 1,024 samples, a thread every 256th of
// them: neighbours read neighbouring logits, moments and rows. A thread reads a sample's row in
// vectors of four numbers, makes the gradient, the step and the new mask, and adds its products to
// 3 + 2 · 8 sums in registers, with the row still there. Metrics beyond eight are read once for the
// gradient and again, eight at a time, for their sums, at the four masks that the thread kept.
//
// Order of reduction. A thread's samples one after the other, lanes (warp_sum), in Real: 128
// samples. Then warps, in float64; a second kernel adds the chunks: of every 256th one thread, one
// after the other, then lanes, then warps. Fixed by the sizes alone. No atomics.
//
// Must move: each influence once, z and both moments in and out: n (k · bytes of an influence +
// 6 · bytes of a logit), 40 bytes a sample at four metrics of float32; n (4 k + 40) operations or
// so, an exponential, a root and three divisions. On an H100 memory is the limit: 40 n / 3.35e12 s.
#pragma once

#include "cuda/block.cuh"
#include "cuda/mask.h"

namespace fudlr {
inline namespace FUDLR_BACKEND {

constexpr int kMaskThreads = 256;
constexpr int kSamplesEach = 4;  // a thread's of a chunk
constexpr int kMaskChunk = kMaskThreads * kSamplesEach;
constexpr int kMetrics = 8;   // whose sums are in registers at one time
constexpr int kMaskSums = 3;  // sums beside those of each metric
constexpr int kThreadSums = kMaskSums + 2 * kMetrics;

template <typename Real>
struct Sigmoid {
  Real mask, slope;
};
template <typename Real>
FUDLR_DEVICE Sigmoid<Real> sigmoid(Real z) {
  const Real t = exp(z < 0 ? z : -z);
  const Real r = Real(1) / (Real(1) + t);
  return {z < 0 ? t * r : r, t * r * r};
}

// Sample i's influences on the metrics from `first` on, zeros where there are none.
template <typename In>
FUDLR_DEVICE void load_metrics(const gpu::Influence& s, int64_t i, int64_t first,
                               Sum<In> (&to)[kMetrics]) {
  constexpr int kFour = 4;
  const In* from = static_cast<const In*>(s.data) + i * s.stride + first;
  [[maybe_unused]] const bool aligned = reinterpret_cast<uintptr_t>(from) % 8 == 0;
#pragma unroll
  for (int v = 0; v < kMetrics; v += kFour) {
    alignas(16) In four[kFour];
    if constexpr (sizeof(In) > 2) {
      load_some(from + v, s.k - first - v, is_aligned(from + v), four);
    } else if (aligned && s.k - first - v >= kFour) {
      *reinterpret_cast<uint2*>(four) = *reinterpret_cast<const uint2*>(from + v);
    } else {
#pragma unroll
      for (int j = 0; j < kFour; ++j) {
        four[j] = first + v + j < s.k ? from[v + j] : narrow_to<In>(0.f);
      }
    }
#pragma unroll
    for (int j = 0; j < kFour; ++j) to[v + j] = widen(four[j]);
  }
}

template <typename Real>
FUDLR_DEVICE void add_metrics(const Real (&metrics)[kMetrics], Real mask, Real square,
                              Real (&sums)[kThreadSums]) {
#pragma unroll
  for (int j = 0; j < kMetrics; ++j) {
    sums[kMaskSums + j] += mask * metrics[j];
    sums[kMaskSums + kMetrics + j] += square * metrics[j];
  }
}

// The block's sums of the metrics from `first` on, and of the mask with the first ones, into a
// chunk's `to` [3 + 2 k]. Begins with a barrier.
template <typename Real>
FUDLR_DEVICE void put_sums(const Real (&sums)[kThreadSums], int64_t first, int64_t k, double* to) {
  FUDLR_SHARED(Real, board, [kMaskThreads / 32][kThreadSums]);
  __syncthreads();  // the sums of before have been read
#pragma unroll
  for (int j = 0; j < kThreadSums; ++j) {
    if (j >= kMaskSums && first + (j - kMaskSums) % kMetrics >= k) continue;
    const Real sum = warp_sum(sums[j]);
    if (threadIdx.x % 32 == 0) board[threadIdx.x / 32][j] = sum;
  }
  __syncthreads();
  const int j = static_cast<int>(threadIdx.x);
  if (j >= kThreadSums) return;
  const int64_t metric = first + (j - kMaskSums) % kMetrics;
  if (j < kMaskSums ? first > 0 : metric >= k) return;
  double sum = 0;
  for (int w = 0; w < kMaskThreads / 32; ++w) sum += static_cast<double>(board[w][j]);
  to[j < kMaskSums ? j : kMaskSums + (j - kMaskSums) / kMetrics * k + metric] = sum;
}

// work[chunk, 3 + 2 k] = the sums of every chunk at the masks that update(i, first metrics) gives.
template <typename In, typename Update>
FUDLR_DEVICE void sum_chunks(const gpu::Influence& s, double* work, Update update) {
  using Real = Sum<In>;
  const int64_t chunks = (s.n + kMaskChunk - 1) / kMaskChunk;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t begin = chunk * kMaskChunk + threadIdx.x;
    double* to = work + chunk * (kMaskSums + 2 * s.k);
    Real masks[kSamplesEach] = {}, squares[kSamplesEach] = {};
    Real sums[kThreadSums] = {};
#pragma unroll
    for (int e = 0; e < kSamplesEach; ++e) {
      const int64_t i = begin + e * kMaskThreads;
      if (i >= s.n) continue;
      Real metrics[kMetrics];
      load_metrics<In>(s, i, 0, metrics);
      const Sigmoid<Real> now = update(i, metrics);
      masks[e] = now.mask;
      squares[e] = now.slope * now.slope;
      sums[0] += masks[e];
      sums[1] += now.slope;
      sums[2] += squares[e];
      add_metrics(metrics, masks[e], squares[e], sums);
    }
    put_sums(sums, 0, s.k, to);
    for (int64_t first = kMetrics; first < s.k; first += kMetrics) {
      Real more[kThreadSums] = {};
#pragma unroll
      for (int e = 0; e < kSamplesEach; ++e) {
        const int64_t i = begin + e * kMaskThreads;
        if (i >= s.n) continue;
        Real metrics[kMetrics];
        load_metrics<In>(s, i, first, metrics);
        add_metrics(metrics, masks[e], squares[e], more);
      }
      put_sums(more, first, s.k, to);
    }
  }
}

template <typename Real>
FUDLR_DEVICE void load_weights(const Real* weights, int64_t first, int64_t k,
                               Real (&to)[kMetrics]) {
#pragma unroll
  for (int j = 0; j < kMetrics; ++j) to[j] = first + j < k ? weights[first + j] : Real(0);
}

template <typename Real>
FUDLR_DEVICE Real dot(const Real (&x)[kMetrics], const Real (&y)[kMetrics], Real sum) {
#pragma unroll
  for (int j = 0; j < kMetrics; ++j) sum += x[j] * y[j];
  return sum;
}

// gpu::MaskStep in Real.
template <typename Real>
struct AdamStep {
  const Real* weights;
  Real *logits, *first, *second;
  Real price, fresh_first, fresh_second, rate, correction, eps, limit;

  // Changes sample i's logit and moments; returns the mask at the new logit.
  FUDLR_DEVICE Sigmoid<Real> take(int64_t i, Real z, Real gradient) const {
    const Real mean = first[i] + (gradient - first[i]) * fresh_first;
    const Real square = second[i] + (gradient * gradient - second[i]) * fresh_second;
    z -= rate * mean / (sqrt(square * correction) + eps);
    z = z > limit ? limit : z;  // NaN comes through
    z = z < -limit ? -limit : z;
    first[i] = mean;
    second[i] = square;
    logits[i] = z;
    return sigmoid(z);
  }
};

template <typename In>
FUDLR_KERNEL(kMaskThreads, 2)
mask_step_kernel(gpu::Influence s, AdamStep<Sum<In>> step, Sum<In> shift, double* work) {
  using Real = Sum<In>;
  Real weights[kMetrics];
  load_weights(step.weights, 0, s.k, weights);
  sum_chunks<In>(s, work, [&](int64_t i, const Real(&metrics)[kMetrics]) {
    Real slope = dot(weights, metrics, step.price);
    for (int64_t first = kMetrics; first < s.k; first += kMetrics) {
      Real more[kMetrics], theirs[kMetrics];
      load_metrics<In>(s, i, first, more);
      load_weights(step.weights, first, s.k, theirs);
      slope = dot(theirs, more, slope);
    }
    const Real z = step.logits[i] - shift;
    return step.take(i, z, sigmoid(z).slope * slope);
  });
}

template <typename In>
FUDLR_KERNEL(kMaskThreads, 2)
mask_sums_kernel(gpu::Influence s, const Sum<In>* logits, Sum<In> shift, double* work) {
  using Real = Sum<In>;
  sum_chunks<In>(s, work,
                 [&](int64_t i, const Real(&)[kMetrics]) { return sigmoid(logits[i] - shift); });
}

// sums[j] = Σ work[chunk, j], a block for each j.
FUDLR_KERNEL(kMaskThreads, 2)
mask_finish_kernel(const double* work, int64_t chunks, int64_t size, double* sums) {
  for (int64_t j = blockIdx.x; j < size; j += gridDim.x) {
    double sum = 0;
    for (int64_t c = threadIdx.x; c < chunks; c += kMaskThreads) sum += work[c * size + j];
    sum = block_total(sum);
    if (threadIdx.x == 0) sums[j] = sum;
  }
}

}  // namespace FUDLR_BACKEND
}  // namespace fudlr
