// The catalogue as kernels want it, and its items shared out between threads.
#pragma once

#include <algorithm>
#include <vector>

#include "abi/parallel.h"
#include "cpu/catalogue_kernel.h"
#include "cpu/choose.h"

namespace fudlr {

// Results of so many chunks a thread wait to be joined, so that fast threads need not.
constexpr int64_t kSlotsPerThread = 2;

struct CatalogueArguments {
  const Tensor& users;
  const Tensor& items;
  const OptionalTensor& seen_offsets;
  const OptionalTensor& seen_items;
  double scale;
};

// The catalogue as the kernels want it, and what has to stay alive for that.
template <typename In, typename Real>
class CatalogueView {
 public:
  CatalogueView(const CatalogueKernels<In, Real>& kernels, const CatalogueArguments& given,
                const OptionalTensor& values, int64_t c)
      : items_(with_dense_rows(given.items)), values_(values ? values->contiguous() : Tensor()) {
    const int64_t n = given.users.size(0);
    const int64_t width = given.items.size(1);
    const int64_t padded = kernels.padded(width);
    users_ = zeros({n, padded}, given.users);
    const Real* from = given.users.template const_data_ptr<Real>();
    Real* to = users_.template mutable_data_ptr<Real>();
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        to[i * padded + j] = from[i * given.users.stride(0) + j * given.users.stride(1)] *
                             static_cast<Real>(given.scale);
      }
    }
    sort_seen(given, n);
    view_ = {users_.template const_data_ptr<Real>(),
             n,
             padded,
             static_cast<const In*>(items_.const_data_ptr()),
             items_.stride(0),
             width,
             values ? values_.template const_data_ptr<Real>() : nullptr,
             c,
             given.seen_offsets ? offsets_.const_data_ptr<int64_t>() : nullptr,
             seen_.data()};
  }

  const Catalogue<In, Real>& operator*() const { return view_; }
  int64_t count() const { return items_.size(0); }
  int64_t chunk_work() const { return view_.n * view_.width * kItemChunk; }

 private:
  void sort_seen(const CatalogueArguments& given, int64_t n) {
    if (!given.seen_offsets) return;
    offsets_ = given.seen_offsets->contiguous();
    const int64_t* offsets = offsets_.const_data_ptr<int64_t>();
    const Tensor seen = given.seen_items->contiguous();
    const int64_t* data = seen.const_data_ptr<int64_t>();
    seen_.assign(data, data + seen.numel());
    for (int64_t i = 0; i < n; ++i) {
      std::sort(seen_.begin() + offsets[i], seen_.begin() + offsets[i + 1]);
    }
  }

  Tensor items_, values_, users_, offsets_;
  std::vector<int64_t> seen_;
  Catalogue<In, Real> view_;
};

// Numbers that the results of chunks may take before they are joined: more users wait.
constexpr int64_t kWaiting = 1 << 26;

// How many chunks' results exist at one time.
inline int64_t catalogue_slots() {
  const int64_t threads = num_threads();
  return threads == 1 ? 1 : threads * kSlotsPerThread;
}

// Calls run(arguments, first, count) for blocks of users, so that what waits to be joined, so many
// numbers a user and chunk, is bounded whatever the threads. A user's numbers are that user's
// alone.
template <typename Run>
void for_users(const CatalogueArguments& given, int64_t numbers, Run run) {
  const int64_t n = given.users.size(0);
  const int64_t most =
      std::max<int64_t>(1, kWaiting / (catalogue_slots() * std::max<int64_t>(1, numbers)));
  if (n <= most) return run(given, 0, n);
  const Tensor items = with_dense_rows(given.items);  // once for all
  for (int64_t first = 0; first < n; first += most) {
    const int64_t count = std::min(most, n - first);
    const OptionalTensor offsets =
        given.seen_offsets ? OptionalTensor(given.seen_offsets->narrow(0, first, count + 1))
                           : std::nullopt;
    run(CatalogueArguments{given.users.narrow(0, first, count), items, offsets, given.seen_items,
                           given.scale},
        first, count);
  }
}

// Calls work(begin, end, slot) for the chunks of the items, shared between threads, and join(slot)
// for each of them in the items' order, so that no number depends on the threads.
template <typename AnyView, typename Work, typename Join>
void for_chunks(const AnyView& view, int64_t at_once, Work work, Join join) {
  const int64_t count = view.count();
  const int64_t chunks = (count + kItemChunk - 1) / kItemChunk;
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, view.chunk_work()));
  for (int64_t first = 0; first < chunks; first += at_once) {
    const int64_t wave = std::min(at_once, chunks - first);
    parallel_for(0, wave, grain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        const int64_t start = (first + slot) * kItemChunk;
        work(start, std::min(start + kItemChunk, count), slot);
      }
    });
    for (int64_t slot = 0; slot < wave; ++slot) join(slot);
  }
}

}  // namespace fudlr
