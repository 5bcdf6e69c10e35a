// The two passes over a catalogue that its ops are made of: means under the softmax, and gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>
#include <tuple>

#include "cpu/catalogue_view.h"

namespace fudlr {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// p C [n, c] for values C [M, c], or for none with c = 0, and log Σ exp of the scores [n].
std::tuple<at::Tensor, at::Tensor> catalogue_mean_and_lse(const CatalogueArguments& given,
                                                          const OptionalTensor& values, int64_t c);

// What the gradients hang on: g [n, c], shift [n] and lse [n], dense.
struct CatalogueCotangents {
  at::Tensor weights, shift, lse;
};

struct CatalogueWanted {
  bool users, items, values;
};

using CatalogueTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// In users, items and values for ∂ℓ/∂s_im = p_im (g_i · C_m − shift_i); empty where not wanted.
CatalogueTensors catalogue_gradients(const CatalogueArguments& given, const OptionalTensor& values,
                                     const CatalogueCotangents& from, CatalogueWanted wanted);

}  // namespace fudlr
