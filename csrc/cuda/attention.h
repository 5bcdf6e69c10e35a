// Launchers of the attention kernels: pointers, sizes and a stream, no tensors. Numbers are float,
// double, or 16 bits wide, whose sums are float. Each launcher returns null, or what the launch had
// to say against itself.
#pragma once

#include <cstdint>

#include "cuda/decoder.h"

namespace fudlr::gpu {

// Queries, keys and values, or k tangents of theirs a position.
struct AttentionRows {
  Lines q, k, v;
};

// Queries [queries, heads · width], keys and values [keys, key_heads · width] of samples of unequal
// length; query head h attends to key head h / (heads / key_heads). All arrays in device memory.
struct Attention {
  Number number;
  AttentionRows in;
  const int64_t* query_offsets;  // [samples + 1], the query rows of each sample
  const int64_t* key_offsets;    // [samples + 1], the key rows of each sample
  const int64_t* limits;  // of each query row: it sees that many of its sample's keys, the first
                          // ones; never falling within a sample
  const int* bad;         // not 0: one of the three makes no sense, and every result is NaN
  int64_t samples, queries, keys, heads, key_heads, width;
  double scale;
};

// What a derivative is taken of, and along: the cotangents of k backward passes, or none; the
// tangents, or none; with both, the primal cotangent `delta`.
struct AttentionAlong {
  int64_t k;
  Lines grads, delta;
  AttentionRows tangents;
  void* sums;  // scratch: 4 · queries · k · heads numbers in which sums are kept
};

// What a launch gives: the output's tangents, or the cotangents (or their derivatives) of one
// input.
enum class AttentionPart { output, queries, keys, values };

// *bad, 0 before, becomes 1 where offsets or limits make no sense.
const char* check_attention(const Attention& all, int* bad, void* stream);
// O = softmax(scale Q Kᵀ) V
const char* attention(const Attention& all, const OutLines& out, void* stream);
// Fills along.sums, which attention_part reads.
const char* attention_sums(const Attention& all, const AttentionAlong& along, void* stream);
const char* attention_part(const Attention& all, const AttentionAlong& along, AttentionPart part,
                           const OutLines& out, void* stream);

}  // namespace fudlr::gpu
