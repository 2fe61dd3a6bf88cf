#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define DBLR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DBLR_ASAN 1
#endif
#endif

#ifdef DBLR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)

// Saves what the System V ABI lets no call destroy (the control words of floating point are never changed).
extern "C" void dblr_emulator_switch(void** save, void* load);
asm(R"(
.text
.type dblr_emulator_switch, @function
.hidden dblr_emulator_switch
.globl dblr_emulator_switch
dblr_emulator_switch:
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
.size dblr_emulator_switch, .-dblr_emulator_switch
.section .note.GNU-stack,"",@progbits
.text
)");

#else
#include <ucontext.h>
#endif

namespace emulated {

namespace {

std::vector<Fiber*>& free_fibers() {
  static auto* const all = new std::vector<Fiber*>;  // for as long as the process lives
  return *all;
}

#ifdef DBLR_ASAN
Fiber* arrived_from = nullptr;
#endif

}  // namespace

Fiber& main_fiber() {
  static Fiber fiber;
  return fiber;
}

Fiber* take_fiber(void (*entry)()) {
  Fiber* fiber;
  if (free_fibers().empty()) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);  // an overflow of the stack ends the process rather than corrupts it
    fiber = new Fiber;
    fiber->stack = static_cast<unsigned char*>(memory) + page;
    fiber->bytes = kStackBytes;
  } else {
    fiber = free_fibers().back();
    free_fibers().pop_back();
  }
#ifdef DBLR_ASAN
  __asan_unpoison_memory_region(fiber->stack, fiber->bytes);
  fiber->fake_stack = nullptr;
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(fiber->stack + fiber->bytes);
  *--top = nullptr;  // where entry would return to: the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber->stack_pointer = top;
#else
  if (!fiber->context) fiber->context = new ucontext_t;
  ucontext_t& context = *static_cast<ucontext_t*>(fiber->context);
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->stack;
  context.uc_stack.ss_size = fiber->bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
#endif
  return fiber;
}

void give_fiber(Fiber* fiber) { free_fibers().push_back(fiber); }

void fiber_started() {
#ifdef DBLR_ASAN
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (arrived_from == &main_fiber()) {
    main_fiber().stack = static_cast<unsigned char*>(const_cast<void*>(bottom));
    main_fiber().bytes = bytes;
  }
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
#ifdef DBLR_ASAN
  arrived_from = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.bytes);
#endif
#if defined(__x86_64__)
  dblr_emulator_switch(&from.stack_pointer, to.stack_pointer);
#else
  if (!from.context) from.context = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.context), static_cast<ucontext_t*>(to.context));
#endif
#ifdef DBLR_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace emulated
