// Tensor copies: boxes with the 128-byte swizzle, zero fill, multicast, and stores.
#include <array>

#include "check.h"

using namespace selftest;

namespace {

// A map (n, h, w, c) of 16-bit numbers that tell their place.
struct Picture {
  int n, h, w, c;
  Memory<std::uint16_t> data;
  Picture(int n, int h, int w, int c, bool filled = true)
      : n(n), h(h), w(w), c(c), data(static_cast<std::size_t>(n * h * w * c)) {
    for (std::size_t i = 0; i < data.count; i++) data[i] = filled ? static_cast<std::uint16_t>(i + 1) : 0x7fff;
  }
  // 0 outside.
  std::uint16_t at(int in, int y, int x, int channel) {
    const bool inside = in >= 0 && in < n && y >= 0 && y < h && x >= 0 && x < w && channel >= 0 && channel < c;
    return inside ? data[static_cast<std::size_t>(((in * h + y) * w + x) * c + channel)] : 0;
  }
  TensorMap map(int box_x, int box_y) const { return {data.data, {c, w, h, n}, {64, box_x, box_y, 1}, 2}; }
};

constexpr int kBarriers = 1024;  // bytes before the boxes

SharedAddress base() { return shared_address(dynamic_shared()); }

void make_barrier(int arrivals) {
  if (threadIdx.x == 0) {
    barrier_init(base(), arrivals);
    fence_barrier_init();
  }
  sync_threads();
}

// Element `channel` of row `row` (128 bytes) of a box at `offset` of shared memory, a multiple of 128: chunk j of 16
// bytes of the row at address A lies at chunk j xor (A / 128 mod 8).
std::uint16_t element(int offset, int row, int channel) {
  const int at = offset + row * 128, chunk = (channel / 8) ^ (at / 128 % 8);
  std::uint16_t v;
  std::memcpy(&v, dynamic_shared() + at + chunk * 16 + channel % 8 * 2, 2);
  return v;
}

}  // namespace

TEST(load_box) {
  Picture picture(2, 5, 7, 72);
  const TensorMap map = picture.map(4, 3);
  for (const int offset : {kBarriers, kBarriers + 128, kBarriers + 640}) {  // the pattern follows the address
    for (const auto [c, x, y, n] :
         {std::array{0, 0, 0, 0}, {0, -1, -1, 1}, {64, 5, 3, 1}, {0, 0, -9, 0}, {0, 0, 0, 2}}) {
      int wrong = 0, early = 0;
      run({32, 8192}, [&, c = c, x = x, y = y, n = n] {
        make_barrier(1);
        if (threadIdx.x == 0) {
          prefetch_map(map);
          barrier_arrive_expect(base(), 4 * 3 * 128);
          load_box(base() + static_cast<SharedAddress>(offset), map, c, x, y, n, base());
          early += element(offset, 11, 63) != 0xffff;
        }
        barrier_wait(base(), 0);
        for (int row = 0; row < 12; row++) {
          for (int i = 0; i < 64; i++) {
            wrong += element(offset, row, i) != picture.at(n, y + row / 4, x + row % 4, c + i);
          }
        }
      });
      expect(wrong == 0, wrong, " elements of the box at ", x, ", ", y, " are wrong");
      expect(early == 0, "it landed at once");
    }
  }
}

TEST(load_box_misuse) {
  Picture picture(1, 4, 4, 64);
  const TensorMap map = picture.map(4, 2);
  const auto load = [&](SharedAddress to, int expected) {
    make_barrier(1);
    if (threadIdx.x != 0) return;
    barrier_arrive_expect(base(), expected);
    load_box(base() + to, map, 0, 0, 0, 0, base());
    barrier_wait(base(), 0);
  };
  fails({32, 4096}, {"no multiple of 128"}, [&] { load(1024 + 64, 1024); });
  fails({32, 2048}, {"load_box", "outside"}, [&] { load(1024 + 128, 1024); });
  fails({32, 4096}, {"more bytes arrived"}, [&] { load(1024, 512); });
  fails({32, 4096}, {"deadlock", "and 1024 bytes"}, [&] { load(1024, 2048); });
  fails({32, 4096}, {"load_box", "has not been initialised"},
        [&] { load_box(base() + 1024, map, 0, 0, 0, 0, base()); });
  fails({1, 4096}, {"no fence_barrier_init"}, [&] {
    barrier_init(base(), 1);
    barrier_arrive_expect(base(), 1024);
    load_box(base() + 1024, map, 0, 0, 0, 0, base());
  });
  fails({1, 4096}, {"load_box"}, [&] {  // the block is gone before its box, or the box lands in time to be left
    make_barrier(1);
    for (int i = 0; i < 64; i++) {  // one at least is on its way at the end
      barrier_arrive_expect(base(), 1024);
      load_box(base() + 1024, map, 0, 0, 0, 0, base());
      if (i < 63) barrier_wait(base(), i & 1);
    }
  });
  const TensorMap narrow{picture.data.data, {64, 4, 4, 1}, {32, 4, 2, 1}, 2};
  fails({1, 4096}, {"128 bytes wide"}, [&] { load_box(base(), narrow, 0, 0, 0, 0, base()); });
  const TensorMap odd{picture.data.data, {68, 3, 4, 1}, {64, 3, 2, 1}, 2};
  fails({1, 4096}, {"multiples of 16 bytes"}, [&] { load_box(base(), odd, 0, 0, 0, 0, base()); });
}

TEST(load_box_missing_wait) {
  Picture picture(1, 4, 4, 64);
  const TensorMap map = picture.map(4, 2);
  int unread = 0;
  run({32, 4096}, [&] {
    make_barrier(1);
    if (threadIdx.x == 0) {
      barrier_arrive_expect(base(), 1024);
      load_box(base() + 1024, map, 0, 0, 0, 0, base());
      unread += element(1024, 0, 0) == 0xffff;
    }
    barrier_wait(base(), 0);
  });
  expect(unread == 1, "the box was read before it arrived");
}

TEST(load_box_multicast) {
  Picture picture(1, 4, 4, 64);
  const TensorMap map = picture.map(4, 2);
  int wrong = 0, readers = 0;
  run({32, 4096, 8, 4}, [&] {  // block 1 sends to blocks 0, 1 and 3
    const int rank = cluster_rank();
    make_barrier(1);
    if (threadIdx.x == 0) barrier_arrive_expect(base(), rank == 2 ? 0 : 1024);
    sync_cluster();
    if (rank == 1 && threadIdx.x == 0) load_box_multicast(base() + 2048, map, 0, 0, 1, 0, base(), 0b1011);
    barrier_wait(base(), 0);
    for (int row = 0; row < 8; row++) {
      for (int i = 0; i < 64; i++) {
        wrong += element(2048, row, i) != (rank == 2 ? 0xffff : picture.at(0, 1 + row / 4, row % 4, i));
      }
    }
    readers++;
    sync_cluster();
  });
  expect(wrong == 0 && readers == 256, wrong, " elements are wrong for ", readers, " readers");
  fails({1, 4096, 2, 2}, {"beyond the cluster"}, [&] {
    make_barrier(1);
    load_box_multicast(base() + 2048, map, 0, 0, 1, 0, base(), 0b100);
    sync_cluster();
  });
}

namespace {

// Writes row * 64 + channel into a box at kBarriers, swizzled, 12 rows.
void fill_box() {
  for (int i = static_cast<int>(threadIdx.x); i < 12 * 64; i += 32) {
    const int at = kBarriers + i / 64 * 128;
    const auto v = static_cast<std::uint16_t>(i);
    std::memcpy(dynamic_shared() + at + ((i % 64 / 8) ^ (at / 128 % 8)) * 16 + i % 8 * 2, &v, 2);
  }
}

}  // namespace

TEST(store_box) {
  for (const auto [x, y, n] : {std::array{1, 1, 0}, {-2, -1, 1}, {5, 3, 1}, {0, 0, 2}}) {
    Picture picture(2, 5, 7, 64, false);
    const TensorMap map = picture.map(4, 3);
    int early = 0;
    run({32, 8192}, [&, x = x, y = y, n = n] {
      fill_box();
      fence_proxy_async();
      sync_threads();
      if (threadIdx.x == 0) {
        store_box(map, 0, x, y, n, base() + kBarriers);
        store_commit();
        for (std::uint16_t v : picture.data) early += v != 0x7fff;
        store_wait_read<0>();
        for (std::uint16_t v : picture.data) early += v != 0x7fff;
        store_wait<0>();
      }
    });
    expect(early == 0, "it was written before the wait");
    for (int in = 0; in < 2; in++) {
      for (int i = 0; i < 35; i++) {
        const int dy = i / 7 - y, dx = i % 7 - x;
        const bool inside = in == n && dy >= 0 && dy < 3 && dx >= 0 && dx < 4;
        for (int c = 0; c < 64; c++) {
          const int wanted = inside ? (dy * 4 + dx) * 64 + c : 0x7fff;
          expect(picture.at(in, i / 7, i % 7, c) == wanted, "pixel ", i, " of picture ", in, " channel ", c);
        }
      }
    }
  }
}

TEST(store_box_at_exit) {
  Picture picture(1, 3, 4, 64, false);
  const TensorMap map = picture.map(4, 3);
  run({32, 8192}, [&] {
    fill_box();
    fence_proxy_async();
    sync_threads();
    if (threadIdx.x != 0) return;
    store_box(map, 0, 0, 0, 0, base() + kBarriers);
    store_commit();
  });
  expect(picture.at(0, 2, 3, 63) == 11 * 64 + 63, "it was never written");
}

TEST(load_box_over_what_was_read) {
  Picture picture(1, 3, 4, 64, true);
  const TensorMap map = picture.map(4, 3);
  for (const int reads : {1, 2}) {  // by ldmatrix, or as vectors
    for (const bool fenced : {true, false}) {
      const auto kernel = [&] {
        if (threadIdx.x == 0) {
          barrier_init(base(), 1);
          fence_barrier_init();
        }
        sync_threads();
        std::uint32_t r[4];
        if (reads == 1) load_matrices(r, base() + kBarriers + threadIdx.x * 16);
        if (reads == 2) load_vector(r, base() + kBarriers + threadIdx.x * 16);
        if (fenced || threadIdx.x == 3) fence_proxy_async();
        sync_threads();
        if (threadIdx.x == 0) {
          barrier_arrive_expect(base(), 12 * 128);
          load_box(base() + kBarriers, map, 0, 0, 0, 0, base());
        }
        barrier_wait(base(), 0);
      };
      if (fenced) {
        run({32, 8192}, kernel);
      } else {
        fails({32, 8192}, {"load_box", "what thread 0 read", "has not passed a fence_proxy_async"}, kernel);
      }
    }
  }
}

TEST(store_box_hazards) {
  Picture picture(1, 3, 4, 64, false);
  const TensorMap map = picture.map(4, 3);
  fails({32, 8192}, {"store_box", "was written while the box was on its way"}, [&] {  // overwritten too early
    fill_box();
    fence_proxy_async();
    sync_threads();
    if (threadIdx.x == 0) {
      store_box(map, 0, 0, 0, 0, base() + kBarriers);
      store_commit();
      dynamic_shared()[kBarriers + 100] = 77;
      store_wait_read<0>();
    }
  });
  fails({32, 8192}, {"store_box", "was written while the box was on its way"}, [&] {  // no barrier before
    if (threadIdx.x == 0) fence_proxy_async();
    sync_threads();
    if (threadIdx.x == 0) {
      store_box(map, 0, 0, 0, 0, base() + kBarriers);
      store_commit();
    }
    sync_threads();
    fill_box();
    sync_threads();
    if (threadIdx.x == 0) store_wait<0>();
  });
  fails({32, 8192}, {"no fence_proxy_async"}, [&] {
    fill_box();
    sync_threads();
    if (threadIdx.x == 0) store_box(map, 0, 0, 0, 0, base() + kBarriers);
  });
  fails({32, 8192}, {"has not passed a fence_proxy_async"}, [&] {
    const std::uint32_t r[4] = {};
    fence_proxy_async();
    store_matrices_transposed(base() + kBarriers + threadIdx.x * 16, r);
    if (threadIdx.x < 31) fence_proxy_async();
    sync_threads();
    if (threadIdx.x == 0) store_box(map, 0, 0, 0, 0, base() + kBarriers);
  });
  run({32, 8192}, [&] {
    const std::uint32_t r[4] = {};
    store_matrices_transposed(base() + kBarriers + threadIdx.x * 16, r);
    fence_proxy_async();
    sync_threads();
    if (threadIdx.x == 0) store_box(map, 0, 0, 0, 0, base() + kBarriers);
  });
}
