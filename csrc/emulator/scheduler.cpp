// Which thread runs next: any that can, at random.
#include "block.h"

emulated::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

Cluster* cluster = nullptr;
Thread* self = nullptr;

namespace {

std::uint64_t state = 1;

std::string range(unsigned first, unsigned last) {
  return first == last ? "thread " + std::to_string(first)
                       : "threads " + std::to_string(first) + "-" + std::to_string(last);
}

std::string name(const Block& block) {
  return "block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " +
         std::to_string(block.index.z) + ")";
}

std::string reason(const Thread& thread) {
  std::string text = thread.waits;
  if (!thread.waits_at) return text;
  const auto found = thread.block->memory_barriers.find(thread.waits_at);
  if (found == thread.block->memory_barriers.end()) {  // a numbered barrier
    const Gathering& barrier = thread.block->barriers[thread.waits_at];
    return text + " at barrier " + std::to_string(thread.waits_at) + " (" + std::to_string(barrier.arrived) + " of " +
           std::to_string(barrier.expected) + " threads are there)";
  }
  const MemoryBarrier& barrier = found->second;
  return text + " at " + hex(thread.waits_at) + " for parity " + std::to_string(thread.waits_for) + " (phase " +
         std::to_string(barrier.phase) + " lacks " + std::to_string(barrier.pending) + " of " +
         std::to_string(barrier.count) + " arrivals and " + std::to_string(barrier.bytes) + " bytes)";
}

std::string deadlock() {
  std::string text = "deadlock:";
  for (const Block& block : cluster->blocks) {
    for (std::size_t i = 0; i < block.threads.size();) {
      const Thread& first = block.threads[i];
      std::size_t end = i + 1;
      const auto same = [&](const Thread& t) {
        return t.exited == first.exited && t.waits == first.waits && t.waits_at == first.waits_at &&
               t.waits_for == first.waits_for;
      };
      while (end < block.threads.size() && same(block.threads[end])) end++;
      if (!first.exited) {
        text += (text.back() == ':' ? " " : "; ") +
                range(first.index, block.threads[end - 1].index) + " of " + name(block) + " wait in " + reason(first);
      }
      i = end;
    }
  }
  return text;
}

// Removes one element at random.
template <class T> T take_any(std::vector<T>& from) {
  const std::size_t i = from.size() == 1 ? 0 : draw() % from.size();
  const T taken = from[i];
  from[i] = from.back();
  from.pop_back();
  return taken;
}

// The next thread to run, or null at the end (or at a fault, which is noted).
Thread* pick() {
  Ready& ready = cluster->ready;
  while (!cluster->in_flight.empty() && (ready.warps.empty() || (draw() & cluster->laziness) == 0)) {
    try {
      land(draw() % cluster->in_flight.size());
    } catch (const Fault& error) {
      cluster->fault = error.what();
    }
    if (!cluster->fault.empty()) return nullptr;
  }
  Thread* const thread = ready.take();
  if (!thread && cluster->live != 0) cluster->fault = deadlock();
  return thread;
}

void enter(Thread* thread) {
  self = thread;
  threadIdx.x = thread->index;
  blockIdx = thread->block->index;
}

void entry();

void go(Fiber& from, Thread* to) {
  if (!to->fiber) to->fiber = take_fiber(entry);
  enter(to);
  switch_fiber(from, *to->fiber);
}

bool run_thread() {
  std::string failed;
  try {
    (*cluster->body)();
    thread_exits();
  } catch (const Fault& error) {
    failed = place(*self) + ": " + error.what();
  } catch (const std::exception& error) {
    failed = place(*self) + " threw: " + error.what();
  }
  if (!failed.empty()) cluster->fault = failed;
  return failed.empty();
}

// Threads that never wait run one after another on one stack.
void entry() {
  fiber_started();
  Fiber* const mine = self->fiber;
  for (;;) {
    const bool good = run_thread();
    self->fiber = nullptr;
    Thread* const next = good ? pick() : nullptr;
    if (next && !next->fiber) {
      next->fiber = mine;
      enter(next);
      continue;
    }
    give_fiber(mine);
    if (next) {
      go(*mine, next);
    } else {
      switch_fiber(*mine, main_fiber());
    }
  }
}

}  // namespace

void Ready::reset(std::size_t count) {
  threads.resize(count);
  for (std::vector<Thread*>& of_warp : threads) of_warp.clear();
  warps.clear();
}

void Ready::add(Thread* thread) {
  const std::size_t per_block = thread->block->warps.size();
  const std::size_t warp = static_cast<std::size_t>(thread->block->rank) * per_block + thread->index / 32;
  if (threads[warp].empty()) warps.push_back(warp);
  threads[warp].push_back(thread);
}

Thread* Ready::take() {
  if (warps.empty()) return nullptr;
  if (threads[favoured].empty() || (draw() & loyalty) == 0) favoured = warps[draw() % warps.size()];
  Thread* const thread = take_any(threads[favoured]);
  if (threads[favoured].empty()) {
    for (std::size_t& warp : warps) {
      if (warp != favoured) continue;
      warp = warps.back();
      warps.pop_back();
      break;
    }
  }
  return thread;
}

std::uint64_t draw() {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545f4914f6cdd1dull >> 16;
}

void seed_draws(std::uint64_t seed) {  // splitmix64, never 0
  seed += 0x9e3779b97f4a7c15ull;
  seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9ull;
  seed = (seed ^ seed >> 27) * 0x94d049bb133111ebull;
  state = (seed ^ seed >> 31) | 1;
}

std::string place(const Thread& thread) { return range(thread.index, thread.index) + " of " + name(*thread.block); }

std::string hex(std::uint64_t v) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

void fault(const char* instruction, const std::string& what) { throw Fault(std::string(instruction) + ": " + what); }

void run_cluster() {
  cluster->ready.reset(cluster->blocks.size() * cluster->blocks[0].warps.size());
  constexpr std::uint64_t kBits[] = {0, 7, 255, 0xffffffff};
  cluster->ready.loyalty = kBits[draw() % 4];
  cluster->laziness = kBits[draw() % 4];
  cluster->ready.favoured = 0;
  for (Block& block : cluster->blocks) {
    for (Thread& thread : block.threads) wake(&thread);
  }
  if (Thread* const first = pick()) go(main_fiber(), first);
  for (Block& block : cluster->blocks) {  // those left where they were at a fault
    for (Thread& thread : block.threads) {
      if (thread.fiber) give_fiber(thread.fiber);
      thread.fiber = nullptr;
    }
  }
}

void wait(const char* instruction, SharedAddress at, int what_for) {
  Thread* const me = self;
  me->waits = instruction;
  me->waits_at = at;
  me->waits_for = what_for;
  Thread* const next = pick();
  if (!next) {
    switch_fiber(*me->fiber, main_fiber());  // never to come back
  } else if (next != me) {
    go(*me->fiber, next);
  }
  me->waits = nullptr;
}

void wake(Thread* thread) { cluster->ready.add(thread); }

void wake(std::vector<Thread*>& threads) {
  for (Thread* thread : threads) wake(thread);
  threads.clear();
}

}  // namespace emulated
