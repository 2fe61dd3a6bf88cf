// Threads, blocks, barriers of a block, cp.async, launches, the order of threads.
#include <algorithm>

#include "check.h"

using namespace selftest;

TEST(indices) {
  std::vector<int> seen(3 * 2 * 2 * 70);
  const std::string fault = emulated::run("k", {3, 2, 2, 70, 0, 1}, [&] {
    seen[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x]++;
    sync_threads();
    seen[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x]++;
  });
  expect(fault.empty(), fault);
  for (int count : seen) expect(count == 2, "a thread ran ", count, " times");
}

TEST(launches_refused) {
  const auto refused = [](emulated::Grid grid, const char* why) {
    const std::string fault = emulated::run("name", grid, [] {});
    expect(fault.find("name: ") == 0 && fault.find(why) != std::string::npos, "'", fault, "' instead of ", why);
  };
  refused({1, 1, 1, 1025, 0, 1}, "1025 threads");
  refused({1, 1, 1, 0, 0, 1}, "0 threads");
  refused({1, 1, 1, 32, 232449, 1}, "232449 bytes");
  refused({3, 1, 1, 32, 0, 2}, "whole clusters of 2");
  refused({1, 65536, 1, 32, 0, 1}, "too large");
  emulated::set_device({8, 6, 4, 101376});
  refused({2, 1, 1, 32, 0, 2}, "9.0");
  refused({1, 1, 1, 32, 102400, 1}, "101376");
  fails({32, 64}, {"mbarrier.init", "needs compute capability 9.0, the device has 8.6"},
        [] { barrier_init(shared_address(dynamic_shared()), 1); });
  const std::string nothing = emulated::run("name", {0, 1, 1, 32, 0, 1}, [] { throw Failure("it ran"); });
  expect(nothing.empty(), "an empty grid is nothing");
}

TEST(shared_memory) {
  bool aligned = true, poisoned = true;
  run({64, 5000, 3}, [&] {
    unsigned char* const memory = dynamic_shared();
    aligned = aligned && reinterpret_cast<std::uintptr_t>(memory) % 1024 == 0 && shared_address(memory) % 1024 == 0;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 5000; i++) poisoned = poisoned && memory[i] == 0xff;
      std::memset(memory, 1, 5000);
    }
  });
  expect(aligned, "it is not aligned");
  expect(poisoned, "a block found what another left");
}

#ifndef __SANITIZE_ADDRESS__  // which ends the process at the store itself
TEST(store_beside_shared_memory) {
  const auto store = [](int at) {
    fails({32, 100}, {"beside the block's shared memory"}, [at] {
      volatile unsigned char* const p = dynamic_shared();
      if (threadIdx.x == 9) p[at] = 0;
    });
  };
  store(100);
  store(-1);
}
#endif

// Threads tell their number to the next through shared memory; `synced` is the barrier between.
static std::vector<float> neighbours(bool synced) {
  std::vector<float> got(256);
  run({256, 1024}, [&] {
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (synced) sync_threads();
    got[threadIdx.x] = shared[(threadIdx.x + 1) % 256];
  });
  return got;
}

TEST(missing_barrier) {
  const auto good = neighbours(true), bad = neighbours(false);
  int wrong = 0;
  for (std::size_t i = 0; i < 256; i++) {
    expect(good[i] == static_cast<float>((i + 1) % 256), "thread ", i, " got ", good[i]);
    wrong += std::isnan(bad[i]);
  }
  expect(wrong > 50, "without the barrier only ", wrong, " threads read too early");
}

static std::vector<unsigned> order(std::uint64_t seed) {
  std::vector<unsigned> all;
  emulated::set_seed(seed);
  run({64, 0, 4}, [&] {
    all.push_back(blockIdx.x * 1000 + threadIdx.x);
    sync_threads();
    all.push_back(blockIdx.x * 1000 + threadIdx.x);
  });
  return all;
}

TEST(order_follows_seed) {
  const auto one = order(1), again = order(1), other = order(2);
  expect(one == again, "the same seed gave another order");
  expect(one != other, "another seed gave the same order");
  expect(!std::is_sorted(one.begin(), one.begin() + 64), "threads ran in their order");
  expect(!std::equal(one.begin(), one.begin() + 64, one.begin() + 64), "the order stayed after a barrier");
  emulated::set_seed(3);
  expect(neighbours(true) == neighbours(true), "results depend on the order");
}

TEST(named_barriers) {
  int first = 0, wrong = 0;
  run({128}, [&] {
    if (threadIdx.x < 64) {
      first++;
      sync_some(3, 64);
      if (first != 64) wrong++;
    } else {
      sync_some(4, 64);
    }
  });
  expect(wrong == 0, wrong, " threads passed too early");
  fails({64}, {"barrier 2 is awaited by"}, [] { sync_some(2, threadIdx.x < 32 ? 32 + 32 * (threadIdx.x % 2) : 64); });
  fails({64}, {"no barrier 16"}, [] { sync_some(16, 64); });
  fails({64}, {"no whole warps"}, [] { sync_some(1, 40); });
  fails({96}, {"deadlock", "threads 0-95 of block (0, 0, 0) wait in sync_some at barrier 5 (96 of 128"},
        [] { sync_some(5, 128); });
}

TEST(dropped_thread_at_barrier) {
  run({64}, [] {  // threads that have exited are not waited for
    if (threadIdx.x < 40) sync_threads();
  });
  fails({64}, {"deadlock", "sync_threads", "sync_some"}, [] {
    if (threadIdx.x < 32) sync_threads();
    else sync_some(1, 64);
  });
}

TEST(thrown_by_a_kernel) {
  fails({32}, {"thread 5 of block (0, 0, 0) threw: out of luck"}, [] {
    if (threadIdx.x == 5) throw std::runtime_error("out of luck");
    sync_threads();
  });
}

// cp.async: what was copied is there after the wait that covers its group, and not before.
TEST(cp_async) {
  Memory<float> from(32 * 4 * 3);
  for (std::size_t i = 0; i < from.count; i++) from[i] = static_cast<float>(i);
  int early = 0, wrong = 0, late = 0;
  run({32, 32 * 16 * 3}, [&] {
    const int t = static_cast<int>(threadIdx.x);
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    for (int group = 0; group < 3; group++) {
      const int at = (group * 32 + t) * 4;
      copy_async(shared_address(shared + at), from.data + at, t != 4);
      copy_async_commit();
    }
    const auto read = [&](int group) { return shared[(group * 32 + t) * 4 + 3]; };
    const auto right = [&](int group) { return t == 4 ? 0.0f : from.data[(group * 32 + t) * 4 + 3]; };
    early += !std::isnan(read(0));
    copy_async_wait<1>();
    wrong += read(0) != right(0) || read(1) != right(1);
    early += !std::isnan(read(2));
    copy_async_wait<0>();
    late += read(2) != right(2);
  });
  expect(early == 0, early, " copies landed before their wait");
  expect(wrong == 0 && late == 0, wrong + late, " copies did not land at their wait");
}

TEST(cp_async_overwrites_at_issue) {  // a buffer that others still read is seen to be overwritten
  Memory<float> from(4);
  int seen = 0;
  run({32, 16}, [&] {
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    if (threadIdx.x == 0) shared[0] = 1;
    sync_warp();
    if (threadIdx.x == 1) copy_async(shared_address(shared), from.data, true);
    sync_warp();
    seen += std::isnan(shared[0]);
  });
  expect(seen == 32, "only ", seen, " threads saw it");
}

TEST(cp_async_addresses) {
  Memory<float> from(8);
  fails({1, 64}, {"cp.async", "no multiple of 16"},
        [&] { copy_async(shared_address(dynamic_shared()) + 4, from.data, true); });
  fails({1, 64}, {"cp.async", "global address"},
        [&] { copy_async(shared_address(dynamic_shared()), from.data + 1, true); });
  fails({1, 64}, {"cp.async", "outside"},
        [&] { copy_async(shared_address(dynamic_shared()) + 64, from.data, true); });
  run({1, 64}, [&] { copy_async(shared_address(dynamic_shared()), from.data, true); });  // never waited for: no error
}
