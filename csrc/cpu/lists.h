// The k highest scores so far and their items; of equal scores the lower item stands first.
#pragma once

#include <cstdint>

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kSorted = 64;  // lists up to this long are kept sorted, longer ones as heaps

// Whether the first of two scored items stands behind the second in a list.
template <typename Real>
bool behind(Real score, int64_t item, Real other, int64_t other_item) {
  return score < other || (score == other && item > other_item);
}

// Puts an item into a sorted list of k instead of its last, behind all that are as high.
template <typename Real>
void replace_last(Real* scores, int64_t* items, int64_t k, Real score, int64_t item) {
  int64_t at = k - 1;
  for (; at > 0 && score > scores[at - 1]; --at) {
    scores[at] = scores[at - 1];
    items[at] = items[at - 1];
  }
  scores[at] = score;
  items[at] = item;
}

// Replaces the root of a heap of k, behind which no other stands, and moves the new one to its
// place: log k steps, where an insertion into a sorted list takes k.
template <typename Real>
void replace_root(Real* scores, int64_t* items, int64_t k, Real score, int64_t item) {
  int64_t at = 0;
  for (int64_t next = 1; next < k; next = 2 * at + 1) {
    const int64_t right = next + 1;
    if (right < k && behind(scores[right], items[right], scores[next], items[next])) next = right;
    if (!behind(scores[next], items[next], score, item)) break;
    scores[at] = scores[next];
    items[at] = items[next];
    at = next;
  }
  scores[at] = score;
  items[at] = item;
}

}  // namespace
}  // namespace fudlr::FUDLR_ISA
