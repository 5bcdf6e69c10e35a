// Which instruction set the CPU kernels run with: the best that this CPU has, unless FUDLR_ISA or
// set_isa says otherwise.
#pragma once

#include <string>

namespace fudlr {

enum class Isa { portable, avx2, avx512 };

// The set in use; decided on the first call.
Isa active_isa();

const char* isa_name(Isa isa);

// Throws std::invalid_argument where `name` is unknown or is not one that this CPU has.
void set_isa(const std::string& name);

}  // namespace fudlr
