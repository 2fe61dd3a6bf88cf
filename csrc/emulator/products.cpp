// wgmma: products of a warpgroup, with B in shared memory and A in registers or there too, done when waited for.
//
// Each warp's quarter is done at that warp's own wait: what another warp lets be overwritten too early is then seen.
#include <algorithm>
#include <cstring>

#include "block.h"

namespace emulated {

namespace {

Sums& sums_at(float* d, std::size_t count, int& index) {
  std::vector<Sums>& all = self->sums;
  for (index = 0; index < static_cast<int>(all.size()); index++) {
    if (all[static_cast<std::size_t>(index)].d == d) break;
  }
  if (index == static_cast<int>(all.size())) all.push_back({d, {}, 0});
  Sums& mine = all[static_cast<std::size_t>(index)];
  if (mine.under_way == 0) {
    // Registers may have been written since the last product: without a fence they must not have been.
    const bool untouched = mine.value.size() == count && !std::memcmp(d, mine.value.data(), count * 4);
    if (!self->products_fenced && !untouched) {
      fault("wgmma", "no products_fence stands between writing the accumulators and the products");
    }
    mine.value.assign(d, d + count);
    std::fill(d, d + count, float_of(0xffffffffu));  // not to be read before the wait
  } else if (mine.value.size() != count) {
    fault("wgmma", "products of another shape use the same accumulators");
  }
  return mine;
}

struct Wait {
  Thread* thread;
  std::size_t products;
};

// Where a descriptor starts. What other layouts would mean is not known here.
SharedAddress start_of(std::uint64_t descriptor) {
  if (descriptor >> 62 != 1) fault("wgmma", "only descriptors with the 128-byte swizzle are known here");
  if (descriptor >> 49 & 7) fault("wgmma", "only descriptors with base offset 0 are known here");
  return static_cast<SharedAddress>((descriptor & 0x3fff) << 4);
}
SharedAddress leading_of(std::uint64_t descriptor) {
  return static_cast<SharedAddress>((descriptor >> 16 & 0x3fff) << 4);
}
SharedAddress stride_of(std::uint64_t descriptor) {
  return static_cast<SharedAddress>((descriptor >> 32 & 0x3fff) << 4);
}

// Eight elements side by side. The 16-byte chunks change places by bits 7 to 9 of the address, whatever bits those of
// the descriptor's start are.
void load_chunk(SharedAddress at, bool f16, float (&v)[8]) {
  std::uint16_t half[8];
  std::memcpy(half, shared_at("wgmma", block(), at ^ ((at >> 7 & 7) << 4), 16, 16), 16);
  for (int i = 0; i < 8; i++) v[i] = f16 ? float_of_f16(half[i]) : float_of_bf16(half[i]);
}

// B's column n is a row of 128 bytes, eight rows an atom; k runs along the row. To b[k][column].
void load_b(const ProductShape& product, std::vector<float>& b) {
  const SharedAddress start = start_of(product.b), stride = stride_of(product.b);
  if (start % 128 + 32 > 128) fault("wgmma", "the depth of a product runs over its row of 128 bytes");
  const int columns = product.columns;
  for (int n = 0; n < columns; n++) {
    const SharedAddress row =
        start + static_cast<SharedAddress>(n / 8) * stride + static_cast<SharedAddress>(n % 8) * 128;
    for (int k = 0; k < 16; k += 8) {
      float v[8];
      load_chunk(row + static_cast<SharedAddress>(k) * 2, product.f16, v);
      for (int i = 0; i < 8; i++) b[static_cast<std::size_t>((k + i) * columns + n)] = v[i];
    }
  }
}

// Transposed: depth k is a row of 128 bytes of 64 rows of A or columns of B, eight depths an atom; the next 64 lie the
// leading offset further, the next eight depths the stride. Visits all depths of eight by eight from `first` on.
template <class Visit>
void load_depths(std::uint64_t descriptor, int first, int count, bool f16, const Visit& visit) {
  const SharedAddress start = start_of(descriptor), leading = leading_of(descriptor), stride = stride_of(descriptor);
  if (start % 128 != 0) fault("wgmma", "a transposed operand starts within its row of 128 bytes");
  for (int k = 0; k < 16; k++) {
    const SharedAddress row =
        start + static_cast<SharedAddress>(k / 8) * stride + static_cast<SharedAddress>(k % 8) * 128;
    for (int n = first; n < first + count; n += 8) {
      float v[8];
      load_chunk(row + static_cast<SharedAddress>(n / 64) * leading + static_cast<SharedAddress>(n % 64) * 2, f16, v);
      for (int i = 0; i < 8; i++) visit(k, n + i, v[i]);
    }
  }
}

void do_product(void** operands, std::size_t at) {
  const auto lane_at = [&](int l) -> Thread& { return *static_cast<Wait*>(operands[l])->thread; };
  const ProductShape shape = lane_at(0).products[at].shape;
  const auto columns = static_cast<std::size_t>(shape.columns);
  float a[16][16];
  for (int l = 0; l < 32; l++) {
    const Product& mine = lane_at(l).products[at];
    if (mine.shape != shape) fault("wgmma", "lanes 0 and " + std::to_string(l) + " issue different products");
    if (shape.transposed) continue;
    for (int q = 0; q < 4; q++) {
      for (int half = 0; half < 2; half++) {
        const auto v = static_cast<std::uint16_t>(mine.a[q] >> 16 * half);
        a[l / 4 + q % 2 * 8][l % 4 * 2 + q / 2 * 8 + half] = shape.f16 ? float_of_f16(v) : float_of_bf16(v);
      }
    }
  }
  static std::vector<float> b, sum;
  b.resize(16 * columns);
  if (shape.transposed) {
    const int rows = static_cast<int>(lane_at(0).index / 32 % 4) * 16;
    load_depths(shape.a, rows, 16, shape.f16, [&](int k, int row, float v) { a[row - rows][k] = v; });
    load_depths(shape.b, 0, shape.columns, shape.f16, [&](int k, int column, float v) {
      b[static_cast<std::size_t>(k * shape.columns + column)] = v;
    });
  } else {
    load_b(shape, b);
  }
  sum.assign(16 * columns, 0.0f);
  for (std::size_t i = 0; i < 16; i++) {
    for (std::size_t k = 0; k < 16; k++) {
      const float weight = a[i][k];
      for (std::size_t j = 0; j < columns; j++) sum[i * columns + j] += weight * b[k * columns + j];
    }
  }
  for (std::size_t l = 0; l < 32; l++) {
    Thread& thread = lane_at(static_cast<int>(l));
    Sums& mine = thread.sums[static_cast<std::size_t>(thread.products[at].sums)];
    for (std::size_t i = 0; i < columns / 2; i++) {
      mine.value[i] += sum[(l / 4 + i % 4 / 2 * 8) * columns + i / 4 * 8 + l % 4 * 2 + i % 2];
    }
    mine.under_way--;
  }
}

void do_wait(void** operands, unsigned) {
  const Wait& first = *static_cast<Wait*>(operands[0]);
  const unsigned number = first.thread->index / 32;
  Warp& w = first.thread->block->warps[number];
  std::vector<ProductShape>& shapes = first.thread->block->products[number / 4];
  for (int l = 1; l < 32; l++) {
    if (static_cast<Wait*>(operands[l])->products != first.products) {
      fault("wgmma", "lanes 0 and " + std::to_string(l) + " of warp " + std::to_string(number) +
                         " wait for different numbers of products");
    }
  }
  for (std::size_t i = 0; i < first.products; i++) {
    const Product& product = first.thread->products[i];
    if (shapes.size() == w.products_done) shapes.push_back(product.shape);
    if (shapes[w.products_done++] != product.shape) {
      fault("wgmma", "warp " + std::to_string(number) + " issues other products than the warps of its warpgroup");
    }
    do_product(operands, i);
  }
  for (int l = 0; l < 32; l++) {
    Thread& thread = *static_cast<Wait*>(operands[l])->thread;
    std::vector<bool> used(thread.sums.size());
    for (std::size_t i = 0; i < first.products; i++) used[static_cast<std::size_t>(thread.products[i].sums)] = true;
    for (std::size_t i = 0; i < used.size(); i++) {
      const Sums& sums = thread.sums[i];
      if (used[i] && sums.under_way == 0) std::copy(sums.value.begin(), sums.value.end(), sums.d);
    }
    const auto done = static_cast<std::ptrdiff_t>(first.products);
    thread.products.erase(thread.products.begin(), thread.products.begin() + done);
  }
}

void issue(float* d, Product product) {
  needs_capability("wgmma", 9);
  const std::size_t last = self->index / 128 * 4 + 3;
  if (last >= block().warps.size()) fault("wgmma", "the warpgroup has fewer than four warps");
  sums_at(d, static_cast<std::size_t>(product.shape.columns) / 2, product.sums).under_way++;
  self->products.push_back(product);
  self->products_open++;
}

}  // namespace

void products_fence() {
  needs_capability("wgmma.fence", 9);
  self->products_fenced = true;
}

void products(float* d, const std::uint32_t* a, std::uint64_t b, int columns, bool f16) {
  issue(d, {0, {a[0], a[1], a[2], a[3]}, {0, b, columns, false, f16}});
}

void products(float* d, std::uint64_t a, std::uint64_t b, int columns, bool f16) {
  issue(d, {0, {}, {a, b, columns, true, f16}});
}

void products_commit() {
  self->product_groups.push_back(self->products_open);
  self->products_open = 0;
}

void products_wait(int pending) {
  std::size_t groups = 0, products = 0;
  while (self->product_groups.size() - groups > static_cast<std::size_t>(pending)) {
    products += self->product_groups[groups++];
  }
  self->product_groups.erase(self->product_groups.begin(),
                             self->product_groups.begin() + static_cast<std::ptrdiff_t>(groups));
  Wait mine{self, products};
  collective("wgmma.wait_group", static_cast<std::uint64_t>(pending), true, &mine, do_wait);
  self->products_fenced = false;
}

namespace {

// Requests that the pool can serve are served.
void settle(Block& b) {
  for (bool more = true; more;) {
    more = false;
    for (Warp& w : b.warps) {
      const int need = (w.registers_wanted - w.registers) * 32;
      if (w.registers_wanted == 0 || need > b.free_registers) continue;
      b.free_registers -= need;
      w.registers = w.registers_wanted;
      w.registers_wanted = 0;
      w.register_changes.push_back(w.registers);
      more = true;
    }
  }
  wake(b.want_registers);
}

}  // namespace

// The pool is what a launch of so many threads can have: 64K registers, shared out evenly in steps of 8.
void set_registers(int count) {
  needs_capability("setmaxnreg", 9);
  if (count < 24 || count > 256 || count % 8 != 0) {
    fault("setmaxnreg", std::to_string(count) + " registers are no multiple of 8 from 24 to 256");
  }
  collective("setmaxnreg", static_cast<std::uint64_t>(count), true, &count, [](void** operands, unsigned) {
    warp().registers_wanted = *static_cast<int*>(operands[0]);
    settle(block());
  });
  while (warp().registers_wanted) {
    block().want_registers.push_back(self);
    wait("setmaxnreg");
  }
}

std::string check_end() {
  for (const Block& b : cluster->blocks) {
    for (std::size_t i = 0; i < b.warps.size(); i++) {
      const Warp &w = b.warps[i], &first = b.warps[i / 4 * 4];
      const char* differs = w.products_done != first.products_done         ? "numbers of wgmma products"
                            : w.register_changes != first.register_changes ? "setmaxnreg"
                                                                           : nullptr;
      if (differs) {
        return place(b.threads[i * 32]) + ": warps " + std::to_string(i / 4 * 4) + " and " + std::to_string(i) +
               " of a warpgroup executed different " + differs;
      }
    }
  }
  return "";
}

}  // namespace emulated
