// mbarrier, clusters and setmaxnreg.
#include <utility>

#include "check.h"

using namespace selftest;

// Thread 0 makes barriers at the start of shared memory, everyone may use them afterwards.
static void make_barriers(std::initializer_list<int> arrivals) {
  if (threadIdx.x == 0) {
    SharedAddress at = shared_address(dynamic_shared());
    for (const int count : arrivals) barrier_init(std::exchange(at, at + 8), count);
    fence_barrier_init();
  }
  sync_threads();
}
static SharedAddress barrier_at(int i) { return shared_address(dynamic_shared()) + static_cast<SharedAddress>(i) * 8; }

TEST(mbarrier_phases) {  // a producer and a consumer hand one place to and fro
  int wrong = 0;
  run({64, 1024}, [&] {
    make_barriers({32, 32});  // full, empty
    int* const place = reinterpret_cast<int*>(dynamic_shared() + 64);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = 0; i < 50; i++) {
      if (threadIdx.x < 32) {
        if (i > 0) barrier_wait(barrier_at(1), (i - 1) & 1);
        place[lane] = i * 100 + lane;
        barrier_arrive(barrier_at(0));
      } else {
        barrier_wait(barrier_at(0), i & 1);
        wrong += place[31 - lane] != i * 100 + 31 - lane;
        barrier_arrive(barrier_at(1));
      }
    }
  });
  expect(wrong == 0, wrong, " values were not there");
}

TEST(mbarrier_preceding_phase) {  // waiting for the phase before the first returns at once
  run({1, 64}, [] {
    make_barriers({1});
    barrier_wait(barrier_at(0), 1);
  });
}

TEST(mbarrier_dropped_arrival) {
  fails({64, 64},
        {"deadlock", "threads 0-63 of block (0, 0, 0) wait in mbarrier.wait at 0x400 for parity 0",
         "phase 0 lacks 1 of 64 arrivals and 0 bytes"},
        [] {
          make_barriers({64});
          if (threadIdx.x != 17) barrier_arrive(barrier_at(0));
          barrier_wait(barrier_at(0), 0);
        });
}

TEST(mbarrier_misuse) {
  fails({1, 64}, {"mbarrier.arrive", "0x400 has not been initialised"}, [] { barrier_arrive(barrier_at(0)); });
  fails({1, 64}, {"mbarrier.wait", "has not been initialised"}, [] { barrier_wait(barrier_at(1), 0); });
  fails({1, 64}, {"has been initialised before"}, [] {
    make_barriers({1});
    make_barriers({1});
  });
  fails({1, 64}, {"no multiple of 8"}, [] { barrier_init(barrier_at(0) + 4, 1); });
  fails({1, 64}, {"outside"}, [] { barrier_init(barrier_at(8), 1); });
  fails({1, 64}, {"has been overwritten"}, [] {
    make_barriers({1});
    dynamic_shared()[3] = 0;
    barrier_arrive(barrier_at(0));
  });
  fails({1, 64}, {"neither 0 nor 1"}, [] {
    make_barriers({1});
    barrier_wait(barrier_at(0), 2);
  });
  fails({3, 64}, {"has had all its 2 arrivals in phase 0"}, [] {  // bytes are missing: the phase stays
    make_barriers({2});
    if (threadIdx.x == 0) barrier_arrive_expect(barrier_at(0), 128);
    sync_threads();
    if (threadIdx.x > 0) barrier_arrive(barrier_at(0));
  });
}

TEST(mbarrier_awaits_bytes) {
  fails({1, 64}, {"deadlock", "lacks 0 of 1 arrivals and 128 bytes"}, [] {
    make_barriers({1});
    barrier_arrive_expect(barrier_at(0), 128);
    barrier_wait(barrier_at(0), 0);
  });
}

TEST(cluster_barriers) {  // every block arrives at the barrier of block 2
  std::vector<int> rank(8), there(8);
  int released = 0;
  run({32, 64, 8, 4}, [&] {
    if (threadIdx.x == 0) {
      barrier_init(barrier_at(0), 4);
      fence_barrier_init();
      rank[blockIdx.x] = cluster_rank();
    }
    sync_cluster();
    there[blockIdx.x / 4]++;
    if (threadIdx.x == 0) barrier_arrive_in(barrier_at(0), 2);
    if (cluster_rank() == 2) {
      barrier_wait(barrier_at(0), 0);
      released++;
    }
    sync_cluster();
    if (there[blockIdx.x / 4] != 128) released = -1000;
  });
  for (int i = 0; i < 8; i++) expect(rank[static_cast<std::size_t>(i)] == i % 4, "rank of block ", i);
  expect(released == 64, "released ", released);
}

TEST(cluster_misuse) {
  fails({1, 64, 2, 2}, {"no block 2 in the cluster"}, [] {
    make_barriers({1});
    barrier_arrive_in(barrier_at(0), 2);
  });
  fails({1, 64, 2, 2}, {"no fence_barrier_init"}, [] {
    barrier_init(barrier_at(0), 1);
    sync_cluster();
    barrier_arrive_in(barrier_at(0), 1 - cluster_rank());
    sync_cluster();
  });
  fails({1, 64, 2, 2}, {"block 0 of the cluster has exited"}, [] {
    make_barriers({2});
    sync_cluster();
    if (cluster_rank() == 0) {
      barrier_arrive_in(barrier_at(0), 1);
      return;
    }
    barrier_arrive(barrier_at(0));
    barrier_wait(barrier_at(0), 0);
    for (int i = 0; i < 100; i++) sync_warp();
    sync_cluster();  // block 0 is not there any more, and not waited for
    barrier_arrive_in(barrier_at(0), 0);
  });
  const std::vector<std::string> both{"deadlock", "of block (1, 0, 0) wait in sync_cluster",
                                      "of block (0, 0, 0) wait in mbarrier"};
  fails({32, 64, 2, 2}, both, [] {
    make_barriers({1});
    if (cluster_rank() == 0) barrier_wait(barrier_at(0), 0);
    sync_cluster();
  });
}

TEST(set_registers) {
  run({384}, [] {  // 168 each to begin with: the two that grow wait for the one that shrinks
    if (threadIdx.x < 128) {
      registers_down<24>();
    } else {
      registers_up<240>();
    }
  });
  fails({384}, {"deadlock", "wait in setmaxnreg"}, [] { registers_up<240>(); });
  fails({128}, {"different setmaxnreg", "warps 0 and 2"}, [] {
    if (threadIdx.x / 32 != 2) registers_down<64>();
  });
  fails({128}, {"setmaxnreg", "no multiple of 8 from 24 to 256"}, [] { registers_up<236>(); });
  fails({128}, {"setmaxnreg", "no multiple of 8 from 24 to 256"}, [] { registers_down<16>(); });
}
