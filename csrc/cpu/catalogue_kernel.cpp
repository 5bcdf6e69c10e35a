// s_im = h_i · e_m / τ, p = softmax(s) (online: Milakov and Gimelshein 2018), for a tile of items
// and a block of users at a time. The scores of a tile are a small matrix product into L2; what
// follows (maximum, exponential, sums; or ∂s) passes over them there; the gradients are two more
// products of the same tile.
//
// Every number is the sum of the same terms in the same order whatever the threads and the other
// users: within a tile in Real, across tiles in float64 (forward) or Real (gradients of a chunk).
#include "cpu/catalogue_kernel.h"

#include "cpu/lists.h"
#include "cpu/panels.h"
#include "cpu/vexp.h"

namespace fudlr::FUDLR_ISA {
namespace {

constexpr int64_t kUserBlock = 128;  // users whose scores exist at one time

template <typename Real>
constexpr Real kNone = -static_cast<Real>(__builtin_inf());

template <typename Real>
int64_t padded(int64_t width) {
  return blocks(width, kWidth<Real>) * kWidth<Real>;
}

// e^x for x ≤ 0 but for rounding, and 0 below the smallest normal number: an item that is left out
// has none at all.
template <typename Real>
inline Vector<Real> exponential(Vector<Real> x) {
  return x < Bits<Real>::smallest ? Vector<Real>{} : vexp_within<Real>(x);
}

template <typename Real>
Real row_maximum(const Real* row) {
  Vector<Real> highest = load(row);
  for (int64_t j = kWidth<Real>; j < kItemTile; j += kWidth<Real>) {
    const Vector<Real> next = load(row + j);
    highest = next > highest ? next : highest;
  }
  Real maximum = highest[0];
  for (int64_t i = 1; i < kWidth<Real>; ++i) maximum = highest[i] > maximum ? highest[i] : maximum;
  return maximum;
}

// state[0] += Σ_t p_t and state[1 + j] += Σ_t p_t values_j[t], p = exp(row − shift); four values at
// a time share a load of p.
template <typename Real, int C>
void add_products(const Real* row, const Real* values, double* state) {
  Vector<Real> sum[C];
  for (int j = 0; j < C; ++j) sum[j] = Vector<Real>{};
  for (int64_t t = 0; t < kItemTile; t += kWidth<Real>) {
    const Vector<Real> p = load(row + t);
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) sum[j] += p * load(values + j * kItemTile + t);
  }
  Real lanes[kWidth<Real>];
  for (int j = 0; j < C; ++j) {
    store(lanes, sum[j]);
    state[j] += static_cast<double>(lanes_sum(lanes));
  }
}

// row = exp(row − shift); adds its sum to state[0], and its products with C values to what follows.
template <typename Real, int C>
void add_exponentials(Real* row, Real shift, const Real* values, double* state) {
  Vector<Real> sum[C + 1];
  for (int j = 0; j <= C; ++j) sum[j] = Vector<Real>{};
  for (int64_t t = 0; t < kItemTile; t += kWidth<Real>) {
    const Vector<Real> p = exponential<Real>(load(row + t) - shift);
    store(row + t, p);
    sum[C] += p;
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) sum[j] += p * load(values + j * kItemTile + t);
  }
  Real lanes[kWidth<Real>];
  for (int j = 0; j <= C; ++j) {
    store(lanes, sum[j]);
    state[j == C ? 0 : j + 1] += static_cast<double>(lanes_sum(lanes));
  }
}

template <typename Real>
void add_row(Real* row, Real shift, const Real* values, int64_t c, double* state) {
  int64_t j = min(c, 4);
  (j == 0   ? add_exponentials<Real, 0>
   : j == 1 ? add_exponentials<Real, 1>
   : j == 2 ? add_exponentials<Real, 2>
   : j == 3 ? add_exponentials<Real, 3>
            : add_exponentials<Real, 4>)(row, shift, values, state);
  for (; j + 4 <= c; j += 4) add_products<Real, 4>(row, values + j * kItemTile, state + 1 + j);
  for (; j < c; ++j) add_products<Real, 1>(row, values + j * kItemTile, state + 1 + j);
}

// A tile of items in the layouts that the products need, and a block of users' scores of them.
template <typename In, typename Real>
class Tile {
 public:
  Tile(const Catalogue<In, Real>& catalogue, int64_t begin) : all_(catalogue) {
    across_ = across_storage_.get(all_.width * kItemTile);
    dense_ = dense_storage_.get(kItemTile * all_.padded);
    values_ = values_storage_.get(all_.c * kItemTile);
    scores_ = scores_storage_.get(kUserBlock * kItemTile);
    if (all_.seen_offsets == nullptr) return;
    next_seen_ = seen_storage_.get(all_.n);
    for (int64_t i = 0; i < all_.n; ++i) {
      int64_t low = all_.seen_offsets[i], high = all_.seen_offsets[i + 1];
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (all_.seen[middle] < begin) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      next_seen_[i] = low;
    }
  }

  // Items first .. first + count; what a whole tile has more is zero. Rows as they are only where
  // gradients in users need them.
  void set(int64_t first, int64_t count, bool rows) {
    first_ = first;
    count_ = count;
    const In* from = all_.items + first * all_.item_stride;
    for_panels<Real>(kItemTile, [&](int64_t start, int64_t items) {
      Real* to = across_ + start * all_.width;
      const int64_t given = min(items, count > start ? count - start : 0);
      turn(from + start * all_.item_stride, all_.item_stride, given, all_.width, to, items);
      for (int64_t j = 0; given < items && j < all_.width; ++j) {
        for (int64_t t = given; t < items; ++t) to[j * items + t] = Real(0);
      }
    });
    for (int64_t t = 0; t < kItemTile; ++t) {
      for (int64_t j = 0; j < all_.c; ++j) {
        const bool given = all_.values != nullptr && t < count;
        values_[j * kItemTile + t] = given ? all_.values[(first + t) * all_.c + j] : Real(0);
      }
    }
    for_panels<Real>(rows ? all_.padded : 0, [&](int64_t c, int64_t wide) {
      const int64_t given = min(wide, all_.width - c);
      Real* to = dense_ + c * kItemTile;
      for (int64_t t = 0; t < kItemTile; ++t, to += wide) {
        const int64_t kept = t < count ? given : 0;
        for (int64_t j = 0; j < kept; ++j) to[j] = widen(from[t * all_.item_stride + c + j]);
        for (int64_t j = kept; j < wide; ++j) to[j] = Real(0);
      }
    });
  }

  // Scores of the users first .. first + count, −∞ where seen or beyond the tile's items.
  Real* score(int64_t first, int64_t count) {
    multiply_panels(all_.users + first * all_.padded, all_.padded, count, all_.width, across_,
                    kItemTile, false, scores_, kItemTile);
    for (int64_t i = 0; i < count; ++i) {
      Real* row = scores_ + i * kItemTile;
      for (int64_t t = count_; t < kItemTile; ++t) row[t] = kNone<Real>;
      if (all_.seen_offsets == nullptr) continue;
      int64_t& at = next_seen_[first + i];
      const int64_t stop = all_.seen_offsets[first + i + 1];
      for (; at < stop && all_.seen[at] < first_ + count_; ++at) {
        row[all_.seen[at] - first_] = kNone<Real>;
      }
    }
    return scores_;
  }

  const Real* dense() const { return dense_; }
  const Real* values(int64_t j) const { return values_ + j * kItemTile; }

 private:
  const Catalogue<In, Real>& all_;
  int64_t first_ = 0;
  int64_t count_ = 0;
  Scratch<Real> across_storage_, dense_storage_, values_storage_, scores_storage_;
  Scratch<int64_t> seen_storage_;
  Real* across_;  // [width, tile] in panels
  Real* dense_;   // [tile, padded width] in panels
  Real* values_;  // [c, tile]
  Real* scores_;  // [user block, tile]
  int64_t* next_seen_ = nullptr;
};

// Calls visit(tile, first item, items, first user, users, scores) for all users and tiles.
template <typename In, typename Real, typename Open, typename Visit, typename Close>
void for_tiles(const Catalogue<In, Real>& all, int64_t begin, int64_t end, bool rows, Open open,
               Visit visit, Close close) {
  Tile<In, Real> tile(all, begin);
  for (int64_t first = begin; first < end; first += kItemTile) {
    const int64_t items = min(kItemTile, end - first);
    tile.set(first, items, rows);
    open();
    for (int64_t user = 0; user < all.n; user += kUserBlock) {
      const int64_t users = min(kUserBlock, all.n - user);
      visit(tile, first, user, users, tile.score(user, users));
    }
    close(first, items);
  }
}

template <typename In, typename Real>
void forward(const Catalogue<In, Real>& all, int64_t begin, int64_t end, double* partial) {
  const int64_t size = 2 + all.c;
  for (int64_t i = 0; i < all.n; ++i) {
    partial[i * size] = kNone<double>;
    for (int64_t j = 1; j < size; ++j) partial[i * size + j] = 0;
  }
  const auto nothing = [](auto...) {};
  for_tiles(
      all, begin, end, false, nothing,
      [&](const Tile<In, Real>& tile, int64_t, int64_t user, int64_t users, Real* scores) {
        for (int64_t i = 0; i < users; ++i) {
          Real* row = scores + i * kItemTile;
          double* state = partial + (user + i) * size;
          const Real maximum = row_maximum(row);
          if (maximum == kNone<Real>) continue;
          if (static_cast<double>(maximum) > state[0]) {
            const double factor = __builtin_exp(state[0] - static_cast<double>(maximum));
            for (int64_t j = 1; j < size; ++j) state[j] *= factor;
            state[0] = static_cast<double>(maximum);
          }
          add_row(row, static_cast<Real>(state[0]), tile.values(0), all.c, state + 1);
        }
      },
      nothing);
}

// row = ∂ℓ/∂s of one user's scores; adds p g to `to_values` [c, tile] where that is wanted.
template <typename In, typename Real>
void row_gradient(const Tile<In, Real>& tile, int64_t c, const Real* weights, Real shift, Real lse,
                  Real* to_values, Real* row) {
  for (int64_t t = 0; t < kItemTile; t += kWidth<Real>) {
    const Vector<Real> p = exponential<Real>(load(row + t) - lse);
    Vector<Real> slope = Vector<Real>{} - shift;
    for (int64_t j = 0; j < c; ++j) slope += weights[j] * load(tile.values(j) + t);
    store(row + t, p * slope);
    if (to_values == nullptr) continue;
    for (int64_t j = 0; j < c; ++j) {
      Real* to = to_values + j * kItemTile + t;
      store(to, load(to) + p * weights[j]);
    }
  }
}

// Of `C` vectors of columns of the users, and as many items at a time as keep the adders busy.
template <typename Real, int C>
void add_item_panel(const Real* scores, int64_t users, const Real* panel, int64_t width, Real* to) {
  constexpr int R = multiply_rows(C);
  static_assert(kItemTile % R == 0);
  alignas(64) Real sums[R * C * kWidth<Real>];
  for (int64_t t = 0; t < kItemTile; t += R) {
    outer<Real, R, C, false>(scores + t, kItemTile, panel, C * kWidth<Real>, users, sums, nullptr);
    for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int64_t x = 0; x < C * kWidth<Real>; x += kWidth<Real>) {
        Real* target = to + (t + r) * width + x;
        store(target, load(target) + load(sums + r * C * kWidth<Real> + x));
      }
    }
  }
}

// to[t] += Σ_i scores[i][t] users_i, [tile, padded width], with the users in panels.
template <typename Real>
void add_item_gradients(const Real* scores, int64_t users, const Real* panels, int64_t width,
                        Real* to) {
  for_panels<Real>(width, [&](int64_t j, int64_t wide) {
    const auto panel = wide == kColumns<Real>     ? add_item_panel<Real, kVectors>
                       : wide == 2 * kWidth<Real> ? add_item_panel<Real, 2>
                                                  : add_item_panel<Real, 1>;
    panel(scores, users, panels + users * j, width, to + j);
  });
}

// The users of every block in panels, block after block.
template <typename In, typename Real>
void pack_users(const Catalogue<In, Real>& all, Real* to) {
  for (int64_t first = 0; first < all.n; first += kUserBlock) {
    const int64_t count = min(kUserBlock, all.n - first);
    for_panels<Real>(all.padded, [&](int64_t c, int64_t wide) {
      for (int64_t i = 0; i < count; ++i) {
        const Real* from = all.users + (first + i) * all.padded + c;
        std::memcpy(to, from, static_cast<size_t>(wide) * sizeof(Real));
        to += wide;
      }
    });
  }
}

template <typename In, typename Real>
void backward(const Catalogue<In, Real>& all, const CatalogueGradients<In, Real>& to, int64_t begin,
              int64_t end) {
  Scratch<Real> item_storage, value_storage;
  Real* items = to.items == nullptr ? nullptr : item_storage.get(kItemTile * all.padded);
  Real* values = to.values == nullptr ? nullptr : value_storage.get(kItemTile * all.c);
  if (to.users != nullptr) {
    for (int64_t i = 0; i < all.n * all.padded; ++i) to.users[i] = Real(0);
  }
  for_tiles(
      all, begin, end, to.users != nullptr,
      [&] {
        for (int64_t i = 0; items != nullptr && i < kItemTile * all.padded; ++i) items[i] = 0;
        for (int64_t i = 0; values != nullptr && i < kItemTile * all.c; ++i) values[i] = 0;
      },
      [&](const Tile<In, Real>& tile, int64_t, int64_t user, int64_t users, Real* scores) {
        for (int64_t i = 0; i < users; ++i) {
          const int64_t u = user + i;
          row_gradient(tile, all.c, to.weights + u * all.c, to.shift[u], to.lse[u], values,
                       scores + i * kItemTile);
        }
        if (to.users != nullptr) {
          multiply_panels(scores, kItemTile, users, kItemTile, tile.dense(), all.padded, true,
                          to.users + user * all.padded, all.padded);
        }
        if (items != nullptr) {
          add_item_gradients(scores, users, to.packed + user * all.padded, all.padded, items);
        }
      },
      [&](int64_t first, int64_t count) {
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t j = 0; items != nullptr && j < all.width; ++j) {
            narrow(items[t * all.padded + j], to.items[(first + t) * all.width + j]);
          }
          for (int64_t j = 0; values != nullptr && j < all.c; ++j) {
            to.values[(first + t) * all.c + j] = values[j * kItemTile + t];
          }
        }
      });
}

template <typename In, typename Real>
void top(const Catalogue<In, Real>& all, int64_t k, int64_t begin, int64_t end, Real* scores,
         int64_t* items) {
  for (int64_t i = 0; i < all.n * k; ++i) {
    scores[i] = kNone<Real>;
    items[i] = -1;
  }
  const auto nothing = [](auto...) {};
  const bool heap = k > kSorted;
  const int64_t worst = heap ? 0 : k - 1;
  for_tiles(
      all, begin, end, false, nothing,
      [&](const Tile<In, Real>&, int64_t first, int64_t user, int64_t users, const Real* rows) {
        for (int64_t i = 0; i < users; ++i) {
          const Real* row = rows + i * kItemTile;
          Real* best = scores + (user + i) * k;
          int64_t* best_items = items + (user + i) * k;
          if (!(row_maximum(row) > best[worst])) continue;
          for (int64_t t = 0; t < kItemTile; ++t) {
            if (!(row[t] > best[worst])) continue;
            if (heap) replace_root(best, best_items, k, row[t], first + t);
            if (!heap) replace_last(best, best_items, k, row[t], first + t);
          }
        }
      },
      nothing);
  for (int64_t i = 0; heap && i < all.n; ++i) {
    Real* best = scores + i * k;
    int64_t* best_items = items + i * k;
    for (int64_t last = k - 1; last > 0; --last) {
      const Real score = best[last];
      const int64_t item = best_items[last];
      best[last] = best[0];
      best_items[last] = best_items[0];
      replace_root(best, best_items, last, score, item);
    }
  }
}

template <typename In, typename Real>
constexpr CatalogueKernels<In, Real> kernels() {
  return {padded<Real>, forward<In, Real>, pack_users<In, Real>, backward<In, Real>, top<In, Real>};
}

}  // namespace

const CatalogueTable catalogue = {kernels<float, float>(), kernels<double, double>(),
                                  kernels<Bfloat16, float>()};

}  // namespace fudlr::FUDLR_ISA
