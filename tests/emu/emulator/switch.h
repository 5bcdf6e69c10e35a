// Switching between fibers: a few instructions on x86-64, ucontext elsewhere. AddressSanitizer is
// told of each switch, or it would take another fiber's stack for an error.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

// The stack of whoever called `run`.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

#if defined(__x86_64__)

// Saves the registers that a call must keep, puts the stack pointer into *from, takes it from `to`.
extern "C" void fudlr_emulator_switch(void** from, void* to);

inline void* new_context(char* stack, size_t bytes, void (*entry)()) {
  // Six saved registers, the entry as the return address. A function starts with a stack pointer
  // of 8 mod 16, as a call leaves it.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  void** slots = reinterpret_cast<void**>(top) - 2;
  slots[0] = reinterpret_cast<void*>(entry);
  slots[1] = nullptr;
  slots -= 6;
  for (int i = 0; i < 6; ++i) slots[i] = nullptr;
  return slots;
}

inline void raw_switch(void** from, void* to) { fudlr_emulator_switch(from, to); }

#else

inline void* new_context(char* stack, size_t bytes, void (*entry)()) {
  // The context lies at the stack's far end, which is given back with it.
  ucontext_t* context = reinterpret_cast<ucontext_t*>(stack);
  getcontext(context);
  context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
  context->uc_stack.ss_size = bytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

inline void raw_switch(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

#endif

inline void switch_to_fiber(Context& main, void* to, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&main.fake_stack, stack, bytes);
#endif
  (void)stack;
  (void)bytes;
  raw_switch(&main.stack_pointer, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(main.fake_stack, nullptr, nullptr);
#endif
}

inline void switch_from_fiber(void*& here, Context& main) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, main.bottom, main.bytes);
#endif
  raw_switch(&here, main.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &main.bottom, &main.bytes);
#endif
}

// The first thing that a new fiber does.
inline void finish_switch(Context& main) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &main.bottom, &main.bytes);
#endif
  (void)main;
}

[[noreturn]] inline void leave_for_good(Context& main) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, main.bottom, main.bytes);
#endif
  void* nowhere = nullptr;
  raw_switch(&nowhere, main.stack_pointer);
  __builtin_unreachable();
}

}  // namespace emulator
