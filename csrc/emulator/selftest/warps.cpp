// Shuffles, ldmatrix, stmatrix and mma.sync against the PTX manual's tables, and what goes wrong around them.
#include "check.h"

using namespace selftest;

TEST(shuffles) {
  std::uint32_t xored[64] = {}, copied[64] = {};
  double doubles[64] = {};
  run({64}, [&] {
    const unsigned t = threadIdx.x;
    doubles[t] = shuffle_xor(t + 0x1p-40, 12);  // both halves of it count
    xored[t] = bits_of(shuffle_xor(static_cast<float>(t), 5));
    copied[t] = shuffle(t * 3, static_cast<int>(t * 7 % 32));
  });
  for (unsigned t = 0; t < 64; t++) {
    expect(float_of(xored[t]) == static_cast<float>(t ^ 5), "xor of thread ", t);
    expect(doubles[t] == (t ^ 12) + 0x1p-40, "xor of doubles of thread ", t);
    expect(copied[t] == (t / 32 * 32 + t * 7 % 32) * 3, "index of thread ", t);
  }
}

// Thread t of a warp, for matrix m of eight rows of eight 16-bit elements, receives (table of 9.7.14.5.15) row t / 4,
// elements 2 (t % 4) and 2 (t % 4) + 1; with .trans the element in row 2 (t % 4) (+ 1) of column t / 4.
TEST(ldmatrix) {
  std::uint32_t plain[32][4], transposed[32][4];
  std::uint16_t element[4][8][8];
  for (auto& m : element) for (auto& row : m) for (auto& e : row) e = narrow<F16>(random_value()).bits;
  run({32, 1024}, [&] {
    // Row i of matrix m lies at a scattered place.
    const auto at = [](int m, int i) { return (m * 8 + i) * 13 % 32 * 32; };
    const int l = static_cast<int>(threadIdx.x);
    std::memcpy(dynamic_shared() + at(l / 8, l % 8), element[l / 8][l % 8], 16);
    sync_warp();
    const SharedAddress row = shared_address(dynamic_shared() + at(l / 8, l % 8));
    load_matrices(plain[l], row);
    load_matrices_transposed(transposed[l], row);
  });
  for (int t = 0; t < 32; t++) {
    for (int m = 0; m < 4; m++) {
      expect(plain[t][m] == two(element[m][t / 4][2 * (t % 4)], element[m][t / 4][2 * (t % 4) + 1]), "plain ", t);
      expect(transposed[t][m] == two(element[m][2 * (t % 4)][t / 4], element[m][2 * (t % 4) + 1][t / 4]), "trans ", t);
    }
  }
}

TEST(stmatrix) {
  std::uint16_t element[4][8][8], stored[4][8][8];
  for (auto& m : element) for (auto& row : m) for (auto& e : row) e = narrow<F16>(random_value()).bits;
  run({32, 512}, [&] {
    const int t = static_cast<int>(threadIdx.x);
    std::uint32_t r[4];
    for (int m = 0; m < 4; m++) r[m] = two(element[m][2 * (t % 4)][t / 4], element[m][2 * (t % 4) + 1][t / 4]);
    store_matrices_transposed(shared_address(dynamic_shared()) + static_cast<SharedAddress>(t) * 16, r);
    sync_warp();
    if (t == 0) std::memcpy(stored, dynamic_shared(), 512);
  });
  expect(!std::memcmp(element, stored, 512), "the matrices came back otherwise");
}

template <class E> static void check_mma() {
  const auto a = random_values<E>(16 * 16), b = random_values<E>(16 * 8);
  float c[16][8], d[16][8];
  for (auto& row : c) for (float& v : row) v = random_value();
  run({32}, [&] {
    const int l = static_cast<int>(threadIdx.x), group = l / 4, in_group = l % 4;
    std::uint32_t ra[4], rb[2];
    for (int i = 0; i < 8; i += 2) {  // a_i: row group (i in 0, 1, 4, 5) or group + 8; column + 8 for i >= 4
      const int row = (i & 2) ? group + 8 : group, column = in_group * 2 + (i >= 4 ? 8 : 0);
      ra[i / 2] = two(a[row * 16 + column].bits, a[row * 16 + column + 1].bits);
    }
    for (int i = 0; i < 4; i += 2) {  // b_i: row in_group * 2 + (i & 1), + 8 for i >= 2; column group
      const int row = in_group * 2 + (i >= 2 ? 8 : 0);
      rb[i / 2] = two(b[row * 8 + group].bits, b[(row + 1) * 8 + group].bits);
    }
    float rd[4];
    for (int i = 0; i < 4; i++) rd[i] = c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
    mma_16x8x16<E>(rd, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++) d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = rd[i];
  });
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 8; j++) {
      double sum = c[i][j], size = std::abs(c[i][j]);
      for (int k = 0; k < 16; k++) {
        const double product = static_cast<double>(widen(a[i * 16 + k])) * widen(b[k * 8 + j]);
        sum += product;
        size += std::abs(product);
      }
      expect(std::abs(d[i][j] - sum) <= size * 17 * 0x1p-24, "d[", i, "][", j, "] = ", d[i][j], ", not ", sum);
    }
  }
}
TEST(mma_f16) { check_mma<F16>(); }
TEST(mma_bf16) { check_mma<BF16>(); }

TEST(mma_tf32) {
  const auto a = random_values<float>(16 * 8), b = random_values<float>(8 * 8);
  float d[16][8];
  run({32}, [&] {
    const int l = static_cast<int>(threadIdx.x), group = l / 4, in_group = l % 4;
    std::uint32_t ra[4], rb[2];
    for (int i = 0; i < 4; i++) ra[i] = bits_of(a[((i & 1) ? group + 8 : group) * 8 + in_group + (i >= 2 ? 4 : 0)]);
    for (int i = 0; i < 2; i++) rb[i] = bits_of(b[(in_group + 4 * i) * 8 + group]);
    float rd[4] = {};
    mma_16x8x8_tf32(rd, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++) d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = rd[i];
  });
  const auto cut = [](float v) { return static_cast<double>(float_of(bits_of(v) >> 13 << 13)); };
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 8; j++) {
      double sum = 0, size = 0;
      for (int k = 0; k < 8; k++) {
        sum += cut(a[i * 8 + k]) * cut(b[k * 8 + j]);
        size += std::abs(cut(a[i * 8 + k]) * cut(b[k * 8 + j]));
      }
      expect(std::abs(d[i][j] - sum) <= size * 9 * 0x1p-24, "d[", i, "][", j, "] = ", d[i][j], ", not ", sum);
    }
  }
}

TEST(divergent_warp) {
  fails({32}, {"lane", "while lanes", "shuffle"}, [] {
    if (threadIdx.x == 7) {
      sync_warp();
    } else {
      shuffle(1, 0);
    }
  });
  fails({64}, {"deadlock", "threads 32-46 of block (0, 0, 0) wait in mma", "threads 48-63", "thread 47"}, [] {
    float d[4] = {};
    const std::uint32_t a[4] = {};
    if (threadIdx.x == 47) sync_threads();
    if (threadIdx.x / 32 == 1) mma_16x8x16<F16>(d, a, 0, 0);
    sync_threads();
  });
  fails({32}, {"mma", "exited"}, [] {
    float d[4] = {};
    const std::uint32_t a[4] = {};
    if (threadIdx.x != 3) mma_16x8x16<F16>(d, a, 0, 0);
  });
  fails({16}, {"fewer than 32 threads"}, [] {
    float d[4] = {};
    const std::uint32_t a[4] = {};
    mma_16x8x16<F16>(d, a, 0, 0);
  });
}

TEST(matrix_addresses) {
  fails({32, 1024}, {"ldmatrix", "no multiple of 16", "thread"}, [] {
    std::uint32_t r[4];
    load_matrices(r, shared_address(dynamic_shared()) + 8);
  });
  fails({32, 1024}, {"ldmatrix", "outside"}, [] {
    std::uint32_t r[4];
    load_matrices(r, shared_address(dynamic_shared()) + 1024 - 496 + threadIdx.x * 16);
  });
  int local = 0;
  fails({32, 1024}, {"shared_address"}, [&] { shared_address(&local); });
}
