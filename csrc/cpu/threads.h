// Work shared among threads. Each begins with tasks in a row, the same part of them in every stage, and ends with what
// others have left, so any number of threads that really comes is right. Each has scratch memory of its own. Results
// never depend on which thread ran a task.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

#include "tensor.h"

namespace dblr {

// GNU's entry point for a parallel region, which libgomp and libiomp5 both offer. With it the kernels run on
// the pool that torch's own operations use; without it, or in a forked child (where that pool is gone), on
// plain threads made for the call.
using OpenMP = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void use_openmp(OpenMP entry);
bool has_openmp();

// Tasks that may run in any order, side by side.
struct Stage {
  Index tasks = 0;
  std::size_t scratch_bytes = 0;
  // next: the task that this thread is likely to go on with, or -1. scratch: scratch_bytes of uninitialised memory,
  // 64-byte aligned, the thread's own while the task runs. Must not throw.
  std::function<void(Index task, Index next, char* scratch)> run = {};
  // What a task gives of a picture; null where no other stage asks.
  std::function<Rect(Index task)> part = {};

  // So many of the stages before this one may still be at work when it begins; all others are done.
  Index beside = 0;
  // And of the very last of them those tasks are done whose part meets a task's own, grown by so many pixels.
  struct Margin {
    Index up, down, sides;
  };
  std::optional<Margin> near = {};
};

// Stage after stage. A thread that finds nothing left of one goes on to the next, where that may begin.
void run_stages(int threads, const std::vector<Stage>& stages);
inline void run_stage(int threads, Stage stage) { run_stages(threads, {std::move(stage)}); }

// f(task, scratch) for each task < tasks, with scratch as a stage's.
template <class F> void parallel(int threads, Index tasks, std::size_t scratch_bytes, const F& f) {
  run_stage(threads, {tasks, scratch_bytes, [&f](Index task, Index, char* scratch) { f(task, scratch); }});
}

}  // namespace dblr
