// Watches every access of a kernel's threads to memory, where the kernels were compiled with
// -fsanitize=thread and linked without it: races, bank conflicts, 32-byte sectors.
#pragma once

#include <cstdint>
#include <string>

namespace emulator {

void check_begin_launch();
void check_begin_block();
void check_end_block();
void check_end_launch();

// A row of eight 16-bit numbers that ldmatrix reads for the fiber that runs now.
void check_matrix_row(const void* row);

// An atomic change of memory by the fiber that runs now.
void check_atomic(const void* address, int width);

// What was counted since the last reset, as JSON.
std::string check_report();
void check_reset();

}  // namespace emulator
