// wgmma against the PTX manual's layouts of registers and of shared memory.
#include "check.h"

using namespace selftest;

namespace {

constexpr int kThreads = 128;

// Row-major matrices: a (64 x 16 steps), b (16 steps x columns), c and d (64 x columns).
template <class E> struct Problem {
  int columns, steps;
  std::vector<E> a, b;
  std::vector<float> c, d;
  Problem(int columns, int steps)
      : columns(columns), steps(steps), a(random_values<E>(static_cast<std::size_t>(64 * 16 * steps))),
        b(random_values<E>(static_cast<std::size_t>(16 * steps * columns))),
        c(random_values<float>(static_cast<std::size_t>(64 * columns))), d(c.size(), NAN) {}

  E a_at(int row, int k) const { return a[static_cast<std::size_t>(row * 16 * steps + k)]; }
  E b_at(int k, int column) const { return b[static_cast<std::size_t>(k * columns + column)]; }

  // Registers of A for k0: thread T holds of row 16 (T / 32) + T % 32 / 4 (+ 8 in a1, a3) columns 2 (T % 4), + 1
  // (+ 8 in a2, a3).
  void fragment(int k0, std::uint32_t (&r)[4]) const {
    const int t = static_cast<int>(threadIdx.x) % 128, row = t / 32 * 16 + t % 32 / 4, k = k0 + t % 4 * 2;
    r[0] = two(a_at(row, k).bits, a_at(row, k + 1).bits);
    r[1] = two(a_at(row + 8, k).bits, a_at(row + 8, k + 1).bits);
    r[2] = two(a_at(row, k + 8).bits, a_at(row, k + 9).bits);
    r[3] = two(a_at(row + 8, k + 8).bits, a_at(row + 8, k + 9).bits);
  }

  // Accumulator i of thread T: row 16 (T / 32) + T % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (T % 4) + i % 2.
  std::size_t place(int i) const {
    const int t = static_cast<int>(threadIdx.x) % 128;
    const int row = t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
    return static_cast<std::size_t>(row * columns + column);
  }

  // B in shared memory: column n's depth is the row of 128 bytes at `first` + 128 n, its 16-byte chunk j at
  // j xor (address / 128 mod 8).
  void store_b(int first) const {
    for (int i = static_cast<int>(threadIdx.x); i < columns * 16 * steps; i += kThreads) {
      const int n = i / (16 * steps), k = i % (16 * steps), at = first + n * 128;
      const E v = b_at(k, n);
      std::memcpy(dynamic_shared() + at + ((k / 8) ^ (at / 128 % 8)) * 16 + k % 8 * 2, &v, 2);
    }
    fence_proxy_async();
    sync_threads();
  }

  // Both operands transposed: depth k of 64 rows or columns is the row of 128 bytes at `first` + 128 k, the next 64 lie
  // `leading` further.
  template <class At> void store_depths(int count, int first, int leading, const At& value) const {
    for (int i = static_cast<int>(threadIdx.x); i < count * 16 * steps; i += kThreads) {
      const int n = i % count, k = i / count, at = first + n / 64 * leading + k * 128;
      const E v = value(n, k);
      std::memcpy(dynamic_shared() + at + ((n % 64 / 8) ^ (at / 128 % 8)) * 16 + n % 8 * 2, &v, 2);
    }
  }

  void check() const {
    for (int row = 0; row < 64; row++) {
      for (int column = 0; column < columns; column++) {
        const auto at = static_cast<std::size_t>(row * columns + column);
        double sum = c[at], size = std::abs(c[at]);
        for (int k = 0; k < 16 * steps; k++) {
          const double product = static_cast<double>(widen(a_at(row, k))) * widen(b_at(k, column));
          sum += product;
          size += std::abs(product);
        }
        expect(std::abs(d[at] - sum) <= size * (16 * steps + 1) * 0x1p-24, "d[", row, "][", column, "] = ", d[at],
               ", not ", sum);
      }
    }
  }
};

template <class E, int columns> void multiply(float (&d)[columns / 2], const std::uint32_t (&a)[4], std::uint64_t b) {
  if constexpr (columns == 128) products_64x128x16<E>(d, a, b);
  else products_64x256x16<E>(d, a, b);
}

template <class E, int columns> void check_products() {
  for (const int first : {0, 1024, 128, 256 + 2048}) {  // in mid-atom too
    Problem<E> problem(columns, 4);
    int early = 0;
    run({kThreads, 48 * 1024}, [&] {
      problem.store_b(first);
      float d[columns / 2];
      for (int i = 0; i < columns / 2; i++) d[i] = problem.c[problem.place(i)];
      const SharedAddress at = shared_address(dynamic_shared()) + static_cast<SharedAddress>(first);
      std::uint32_t a[4][4];
      for (int k = 0; k < 4; k++) problem.fragment(16 * k, a[k]);
      products_fence();
      for (unsigned k = 0; k < 4; k++) multiply<E, columns>(d, a[k], rows_descriptor(at + k * 32));
      products_commit();
      for (int i = 0; i < columns / 2; i++) early += !std::isnan(d[i]);
      products_wait<0>();
      for (int i = 0; i < columns / 2; i++) problem.d[problem.place(i)] = d[i];
    });
    expect(early == 0, early, " sums were there before the wait");
    problem.check();
  }
}

// Both operands in shared memory, in mid-atom too. Blocks of 64 columns apart, or each the one before from its second
// depth on.
template <class E> void check_transposed_products() {
  constexpr int columns = 192;
  for (const int first : {0, 128, 640}) {
    for (const int leading : {128, 8192}) {
      Problem<E> problem(columns, 2);
      if (leading == 128) {
        const auto values = random_values<E>(64 * 34);
        for (int i = 0; i < 32 * columns; i++) {
          const int k = i / columns, n = i % columns;
          problem.b[static_cast<std::size_t>(i)] = values[static_cast<std::size_t>((k + n / 64) * 64 + n % 64)];
        }
      }
      int early = 0;
      run({kThreads, 48 * 1024}, [&] {
        problem.store_depths(64, first, 0, [&](int row, int k) { return problem.a_at(row, k); });
        problem.store_depths(columns, 8192 + first, leading, [&](int n, int k) { return problem.b_at(k, n); });
        fence_proxy_async();
        sync_threads();
        float d[columns / 64][32];
        for (int i = 0; i < columns / 2; i++) d[i / 32][i % 32] = problem.c[problem.place(i)];
        const SharedAddress at = shared_address(dynamic_shared()) + static_cast<SharedAddress>(first);
        products_fence();
        for (unsigned k = 0; k < 2; k++) {
          const std::uint64_t a = depths_descriptor(at + k * 2048, 128);
          const std::uint64_t b = depths_descriptor(at + 8192 + k * 2048, leading);
          products_64x192x16<E>(d, a, b);
        }
        products_commit();
        for (int i = 0; i < columns / 2; i++) early += !std::isnan(d[i / 32][i % 32]);
        products_wait<0>();
        for (int i = 0; i < columns / 2; i++) problem.d[problem.place(i)] = d[i / 32][i % 32];
      });
      expect(early == 0, early, " sums were there before the wait");
      problem.check();
    }
  }
}

using Kernel = std::function<void(float (&)[64], const std::uint32_t (&)[4], std::uint64_t)>;

// Runs `kernel` with sums, a fragment and a descriptor that are right.
auto with_operands(const Kernel& kernel) {
  return [kernel] {
    std::memset(dynamic_shared() + threadIdx.x * 128, 0, 128);
    fence_proxy_async();
    sync_threads();
    float d[64] = {};
    const std::uint32_t a[4] = {};
    kernel(d, a, rows_descriptor(shared_address(dynamic_shared())));
  };
}
const Shape kGroup{kThreads, 16 * 1024};

}  // namespace

TEST(wgmma_f16_128) { check_products<F16, 128>(); }
TEST(wgmma_bf16_128) { check_products<BF16, 128>(); }
TEST(wgmma_f16_256) { check_products<F16, 256>(); }
TEST(wgmma_bf16_256) { check_products<BF16, 256>(); }

TEST(wgmma_f16_transposed) { check_transposed_products<F16>(); }
TEST(wgmma_bf16_transposed) { check_transposed_products<BF16>(); }

TEST(wgmma_groups) {  // two groups with sums of their own: the first is done while the second is under way
  Problem<F16> problem(128, 2);
  int early = 0;
  run({kThreads, 16 * 1024}, [&] {
    problem.store_b(0);
    float d[2][64] = {};
    for (int i = 0; i < 64; i++) d[0][i] = problem.c[problem.place(i)];
    std::uint32_t a[2][4];
    products_fence();
    for (unsigned k = 0; k < 2; k++) {
      problem.fragment(static_cast<int>(16 * k), a[k]);
      products_64x128x16<F16>(d[k], a[k], rows_descriptor(shared_address(dynamic_shared()) + k * 32));
      products_commit();
    }
    products_wait<1>();
    for (int i = 0; i < 64; i++) early += std::isnan(d[0][i]) + !std::isnan(d[1][i]);
    products_wait<0>();
    for (int i = 0; i < 64; i++) problem.d[problem.place(i)] = d[0][i] + d[1][i];
  });
  expect(early == 0, early, " sums of the wrong group");
  problem.check();
}

TEST(wgmma_reads_b_at_the_wait) {  // B overwritten between issue and wait is seen
  int nan = 0;
  run(kGroup, with_operands([&](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
        products_fence();
        products_64x128x16<F16>(d, a, b);
        products_commit();
        dynamic_shared()[threadIdx.x * 128] = 0xff;
        dynamic_shared()[threadIdx.x * 128 + 1] = 0xff;
        sync_threads();
        products_wait<0>();
        for (float v : d) nan += std::isnan(v);
      }));
  expect(nan > 0, "B was read at issue");
}

TEST(wgmma_misuse) {
  const auto planted = [](std::vector<std::string> parts, const Kernel& kernel) {
    fails(kGroup, parts, with_operands(kernel));
  };
  planted({"wgmma", "no products_fence"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_64x128x16<F16>(d, a, b);
  });
  planted({"wgmma", "no products_fence"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    products_64x128x16<F16>(d, a, b);
    products_commit();
    products_wait<0>();
    d[5] = 1;
    products_64x128x16<F16>(d, a, b);
  });
  planted({"base offset 0"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    products_64x128x16<F16>(d, a, b | 1ull << 49);
    products_commit();
    products_wait<0>();
  });
  planted({"128-byte swizzle"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    products_64x128x16<F16>(d, a, b ^ 3ull << 62);
    products_commit();
    products_wait<0>();
  });
  planted({"wgmma", "outside"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    products_64x128x16<F16>(d, a, b + 8);
    products_commit();
    products_wait<0>();
  });
  planted({"warps", "numbers of wgmma products"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    if (threadIdx.x / 32 != 2) products_64x128x16<F16>(d, a, b);
    products_commit();
    products_wait<0>();
  });
  planted({"issues other products"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    products_64x128x16<F16>(d, a, threadIdx.x / 32 == 1 ? b + 2 : b);
    products_commit();
    products_wait<0>();
  });
  planted({"wait for different numbers"}, [](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    products_fence();
    if (threadIdx.x != 5) products_64x128x16<F16>(d, a, b);
    products_commit();
    products_wait<0>();
  });
  const auto transposed = [&](std::vector<std::string> parts, std::uint64_t a, std::uint64_t b, unsigned other = 4) {
    planted(parts, [=](float (&)[64], const std::uint32_t (&)[4], std::uint64_t) {
      float d[3][32] = {};
      const std::uint64_t right = depths_descriptor(shared_address(dynamic_shared()), 128);
      products_fence();
      products_64x192x16<F16>(d, right + (threadIdx.x / 32 == other ? 8 : a), right + b);
      products_commit();
      products_wait<0>();
    });
  };
  transposed({"wgmma", "within its row of 128 bytes"}, 0, 2);
  transposed({"wgmma", "within its row of 128 bytes"}, 2, 0);
  transposed({"base offset 0"}, 1ull << 49, 0);
  transposed({"128-byte swizzle"}, 0, 1ull << 62);
  transposed({"wgmma", "outside"}, 0, 15 * 64);
  transposed({"issues other products"}, 0, 0, 2);
  fails({96, 16 * 1024}, {"fewer than four warps"}, [] {
    float d[64] = {};
    const std::uint32_t a[4] = {};
    products_fence();
    products_64x128x16<F16>(d, a, 0);
  });
}

TEST(wgmma_not_waited_for) {
  int nan = 0;
  run(kGroup, with_operands([&](float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
        products_fence();
        products_64x128x16<F16>(d, a, b);
        products_commit();
        nan += std::isnan(d[0]);
      }));
  expect(nan == kThreads, "sums without a wait");
}
