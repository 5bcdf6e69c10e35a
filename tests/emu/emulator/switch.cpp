#include "emulator/switch.h"

#if defined(__x86_64__)
// System V: rbx, rbp, r12 to r15 belong to the caller, as do the rounding modes, which no kernel
// changes.
asm(R"(
.text
.globl fudlr_emulator_switch
.hidden fudlr_emulator_switch
.type fudlr_emulator_switch, @function
fudlr_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fudlr_emulator_switch, .-fudlr_emulator_switch
)");
#endif
