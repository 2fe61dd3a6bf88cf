// Work shared among threads. Each begins with tasks in a row, the same part of them in every region, and ends with what
// others have left, so any number of threads that really comes is right. Each has scratch memory of its own. Results
// never depend on which thread ran a task.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace dblr {

// GNU's entry point for a parallel region, which libgomp and libiomp5 both offer. With it the kernels run on
// the pool that torch's own operations use; without it, or in a forked child (where that pool is gone), on
// plain threads made for the call.
using OpenMP = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void use_openmp(OpenMP entry);
bool has_openmp();

using Task = void (*)(const void* context, Index task, char* scratch);
void run_tasks(int threads, Index tasks, std::size_t scratch_bytes, Task task, const void* context);

// f(task, scratch) for each task < tasks. scratch: scratch_bytes of uninitialised memory, 64-byte aligned,
// the thread's own while the task runs. f must not throw.
template <class F> void parallel(int threads, Index tasks, std::size_t scratch_bytes, const F& f) {
  run_tasks(threads, tasks, scratch_bytes,
            [](const void* context, Index task, char* scratch) { (*static_cast<const F*>(context))(task, scratch); },
            &f);
}

}  // namespace dblr
