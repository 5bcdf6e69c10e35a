// Launchers of what a head's cross-entropy adds to the catalogue kernels.
#pragma once

#include <cstdint>

#include "cuda/catalogue.h"

namespace fudlr::gpu {

// The rows of weight that are wanted [n], or `ignored`.
struct Targets {
  const int64_t* rows;
  int64_t ignored;
};

// *bad = whether one of the targets is neither a row of the head's weight nor `ignored`.
const char* check_targets(const Catalogue& head, const Targets& targets, int* bad, void* stream);

// loss_i = lse_i − h_i · w_{target i} [n], 0 where the target is ignored; NaN where they are bad.
const char* target_loss(const Catalogue& head, const Targets& targets, const void* lse, void* loss,
                        void* stream);

}  // namespace fudlr::gpu
