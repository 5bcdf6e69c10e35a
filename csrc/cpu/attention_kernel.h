// Causal attention of samples of unequal length on pointers and sizes, with its derivative along k
// tangents, its backward, and the backward's derivative. Compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/decoder_kernel.h"

namespace fudlr {

struct AttentionShape {
  int64_t heads;      // of queries; query head h attends to key head h / (heads / key_heads)
  int64_t key_heads;  // of keys and values
  int64_t width;      // of one head
  double scale;
  const int64_t* query_offsets;  // [n + 1], the query rows of each sample
  const int64_t* key_offsets;    // [n + 1], the key rows of each sample
  const int64_t* limits;  // of each query row: it sees that many of its sample's keys, the first
                          // ones; never falling within a sample
};

// Queries [Tq, heads · width], keys and values [T, key_heads · width]; k rows a position in arrays
// of tangents.
template <typename Real>
struct AttentionInput {
  Lines<const Real> q, k, v;
};

template <typename Real>
struct AttentionOutput {
  Lines<Real> q, k, v;
};

// A task is one sample's key head, the unit in which work is shared out: n · key_heads of them.
template <typename Real>
struct AttentionKernels {
  void (*forward)(const AttentionShape&, const AttentionInput<Real>&, int64_t begin, int64_t end,
                  Lines<Real> out);
  void (*tangent)(const AttentionShape&, const AttentionInput<Real>&,
                  const AttentionInput<Real>& tangents, int64_t k, int64_t begin, int64_t end,
                  Lines<Real> out);
  // Cotangents of q, k and v for k cotangents of the output. Where `delta` is given, the
  // derivatives of such a backward along the tangents, with delta the primal cotangent.
  void (*backward)(const AttentionShape&, const AttentionInput<Real>&, Lines<const Real> grads,
                   Lines<const Real> delta, const AttentionInput<Real>& tangents, int64_t k,
                   int64_t begin, int64_t end, const AttentionOutput<Real>& result);
};

struct AttentionTable {
  AttentionKernels<float> f32;
  AttentionKernels<double> f64;
};

FUDLR_DECLARE_TABLE(AttentionTable, attention);
FUDLR_DECLARE_TABLE(AttentionKernels<Bfloat16>, attention_bf16);

}  // namespace fudlr
