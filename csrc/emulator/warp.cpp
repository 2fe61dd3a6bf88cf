// Instructions of a whole warp: shuffles, ldmatrix, stmatrix, mma.sync.
#include <algorithm>
#include <cstring>

#include "block.h"

namespace emulated {

namespace {

struct Shuffle {
  std::uint32_t v, result;
  int from;
};

// From a lane that has exited comes what is undefined: NaN.
void do_shuffle(void** operands, unsigned lanes) {
  for (unsigned i = 0; i < 32; i++) {
    if (!(lanes >> i & 1)) continue;
    Shuffle& mine = *static_cast<Shuffle*>(operands[i]);
    mine.result = lanes >> mine.from & 1 ? static_cast<Shuffle*>(operands[mine.from])->v : 0xffffffffu;
  }
}

struct Matrices {
  std::uint32_t* r;
  const unsigned char* row;
};

std::uint16_t half_at(const unsigned char* row, int column) {
  std::uint16_t v;
  std::memcpy(&v, row + 2 * column, 2);
  return v;
}

// Lane 8 m + i names row i of matrix m. Lane l gets of each matrix row l / 4, columns 2 (l % 4) and the next; of a
// transposed one rows 2 (l % 4) and the next, column l / 4.
template <bool transposed> void do_load(void** operands, unsigned) {
  const auto lane_at = [&](int l) { return static_cast<Matrices*>(operands[l]); };
  for (int m = 0; m < 4; m++) {
    for (int l = 0; l < 32; l++) {
      const int g = l / 4, t = l % 4;
      if constexpr (transposed) {
        lane_at(l)->r[m] = half_at(lane_at(8 * m + 2 * t)->row, g) |
                           static_cast<std::uint32_t>(half_at(lane_at(8 * m + 2 * t + 1)->row, g)) << 16;
      } else {
        std::memcpy(&lane_at(l)->r[m], lane_at(8 * m + g)->row + 4 * t, 4);
      }
    }
  }
}

struct StoredMatrices {
  std::uint32_t r[4];
  unsigned char* row;
};

template <bool transposed> void do_store(void** operands, unsigned) {
  const auto lane_at = [&](int l) { return static_cast<StoredMatrices*>(operands[l]); };
  for (int m = 0; m < 4; m++) {
    for (int l = 0; l < 32; l++) {
      const int g = l / 4, t = l % 4;
      const std::uint32_t v = lane_at(l)->r[m];
      if constexpr (transposed) {
        const std::uint16_t low = static_cast<std::uint16_t>(v), high = static_cast<std::uint16_t>(v >> 16);
        std::memcpy(lane_at(8 * m + 2 * t)->row + 2 * g, &low, 2);
        std::memcpy(lane_at(8 * m + 2 * t + 1)->row + 2 * g, &high, 2);
      } else {
        std::memcpy(lane_at(8 * m + g)->row + 4 * t, &v, 4);
      }
    }
  }
}

struct Multiply {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

template <bool f16> float widen(std::uint32_t half) {
  return f16 ? float_of_f16(static_cast<std::uint16_t>(half)) : float_of_bf16(static_cast<std::uint16_t>(half));
}

// d += sum over k of a[row][k] * b[k][column]: the sum from zero in the order of k, in float32; every product is exact.
template <int K> void multiply(void** operands, const float (&a)[16][K], const float (&b)[K][8]) {
  float sum[16][8];
  for (int i = 0; i < 16; i++) {
    float row[8] = {};
    for (int k = 0; k < K; k++) {
      for (int j = 0; j < 8; j++) row[j] += a[i][k] * b[k][j];
    }
    std::copy(row, row + 8, sum[i]);
  }
  for (int l = 0; l < 32; l++) {
    float* const d = static_cast<Multiply*>(operands[l])->d;
    for (int q = 0; q < 4; q++) d[q] += sum[l / 4 + q / 2 * 8][l % 4 * 2 + q % 2];
  }
}

template <bool f16> void do_mma_16(void** operands, unsigned) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; l++) {
    const Multiply& mine = *static_cast<Multiply*>(operands[l]);
    const int g = l / 4, t = l % 4;
    for (int q = 0; q < 4; q++) {
      const int row = g + q % 2 * 8, column = 2 * t + q / 2 * 8;
      a[row][column] = widen<f16>(mine.a[q] & 0xffff);
      a[row][column + 1] = widen<f16>(mine.a[q] >> 16);
    }
    for (int q = 0; q < 2; q++) {
      b[2 * t + 8 * q][g] = widen<f16>(mine.b[q] & 0xffff);
      b[2 * t + 1 + 8 * q][g] = widen<f16>(mine.b[q] >> 16);
    }
  }
  multiply<16>(operands, a, b);
}

// The hardware looks at the upper 19 bits alone.
void do_mma_tf32(void** operands, unsigned) {
  float a[16][8], b[8][8];
  for (int l = 0; l < 32; l++) {
    const Multiply& mine = *static_cast<Multiply*>(operands[l]);
    const int g = l / 4, t = l % 4;
    for (int q = 0; q < 4; q++) a[g + q % 2 * 8][t + q / 2 * 4] = float_of(mine.a[q] & ~0x1fffu);
    for (int q = 0; q < 2; q++) b[t + 4 * q][g] = float_of(mine.b[q] & ~0x1fffu);
  }
  multiply<8>(operands, a, b);
}

}  // namespace

std::uint32_t shuffle_xor(std::uint32_t v, int mask) {
  Shuffle mine{v, 0, lane() ^ (mask & 31)};
  collective("shuffle_xor", static_cast<std::uint64_t>(mask), false, &mine, do_shuffle);
  return mine.result;
}

double shuffle_xor(double v, int mask) {
  std::uint32_t halves[2];
  std::memcpy(halves, &v, 8);
  for (std::uint32_t& half : halves) half = shuffle_xor(half, mask);
  std::memcpy(&v, halves, 8);
  return v;
}

std::uint32_t shuffle(std::uint32_t v, int from) {
  Shuffle mine{v, 0, from & 31};
  collective("shuffle", 0, false, &mine, do_shuffle);
  return mine.result;
}

void load_matrices(std::uint32_t (&r)[4], SharedAddress row, bool transposed) {
  Matrices mine{r, shared_at("ldmatrix", block(), row, 16, 16)};
  note_read(row);
  if (transposed) {
    collective("ldmatrix.trans", 0, true, &mine, do_load<true>);
  } else {
    collective("ldmatrix", 0, true, &mine, do_load<false>);
  }
}

void store_matrices(SharedAddress row, const std::uint32_t (&r)[4], bool transposed) {
  needs_capability("stmatrix", 9);
  StoredMatrices mine{{r[0], r[1], r[2], r[3]}, shared_at("stmatrix", block(), row, 16, 16)};
  warp().fenced = 0;
  warp().not_fenced.push_back(row);
  if (transposed) {
    collective("stmatrix.trans", 0, true, &mine, do_store<true>);
  } else {
    collective("stmatrix", 0, true, &mine, do_store<false>);
  }
}

void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, bool f16) {
  Multiply mine{d, a, {b0, b1}};
  collective("mma.m16n8k16", f16, true, &mine, f16 ? do_mma_16<true> : do_mma_16<false>);
}

void mma_16x8x8_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  Multiply mine{d, a, {b0, b1}};
  collective("mma.m16n8k8.tf32", 0, true, &mine, do_mma_tf32);
}

}  // namespace emulated
