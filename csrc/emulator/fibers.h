// Fibers: stacks and the switch between them.
#pragma once

#include <cstddef>

namespace emulated {

constexpr std::size_t kStackBytes = 256 * 1024;

// A stack and, while it does not run, where it will go on. The host's own stack is one too (main_fiber).
struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;  // lowest byte
  std::size_t bytes = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer
  void* context = nullptr;     // ucontext_t where there is no assembly
};

Fiber& main_fiber();
// A fiber that calls entry() when first switched to; entry never returns.
Fiber* take_fiber(void (*entry)());
void give_fiber(Fiber* fiber);  // its stack is free for another
void switch_fiber(Fiber& from, Fiber& to);
// entry() calls this first.
void fiber_started();

}  // namespace emulated
