// wgmma (9.7.15 of the PTX manual), sm_90a: ptx.cuh continued, for instructions with many operands.
//
// A warpgroup (four warps, the first a multiple of 4) multiplies asynchronously: fence, products, commit, wait.
// Between the fence and the wait its accumulators and the registers of `a` are not to be touched.
#pragma once

#include "ptx.cuh"

namespace dblr {

// Orders earlier accesses of accumulators and `a` registers before the products that follow.
__device__ __forceinline__ void products_fence() {
  DBLR_PTX(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"), emulated::products_fence());
}

__device__ __forceinline__ void products_commit() {
  DBLR_PTX(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"), emulated::products_commit());
}

// Waits until at most `pending` groups are under way.
template <int pending> __device__ __forceinline__ void products_wait() {
  DBLR_PTX(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory"),
           emulated::products_wait(pending));
}

// Descriptor of a B matrix (9.7.15.5.1) whose columns are rows of 128 bytes with the 128-byte swizzle: 64 elements of
// depth each, eight rows an atom of 1024 bytes. `first` may lie inside an atom, as long as the atoms themselves (the
// pattern of the swizzle) start at multiples of 1024: then the base offset is 0. Depth k starts at first + 2 k bytes.
__device__ __forceinline__ std::uint64_t rows_descriptor(SharedAddress first) {
  constexpr std::uint64_t leading = 1, stride = 1024 / 16, swizzle_128 = 1;
  return (first & 0x3ffff) >> 4 | leading << 16 | stride << 32 | swizzle_128 << 62;
}

// d (64 x columns, float32) += a (64 x 16, registers) b (16 x columns, shared). Thread t of the warpgroup, w = t / 32,
// g = t % 32 / 4, i = t % 4: a as in mma_16x8x16 for rows 16 w + g; d[4 j + 0, 1]: row 16 w + g, columns 8 j + 2 i, + 1;
// d[4 j + 2, 3]: row + 8.

template <class E>
__device__ __forceinline__ void products_64x128x16(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
#ifdef DBLR_EMULATED
  emulated::products<E>(d, a, b, 128);
#else
#define DBLR_WGMMA(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
               "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
               "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
               "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 " \
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
               "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
               "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
               "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
               "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
               "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
               "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
               "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (kIsF16<E>) {
    DBLR_WGMMA("f16");
  } else {
    DBLR_WGMMA("bf16");
  }
#undef DBLR_WGMMA
#endif
}

template <class E>
__device__ __forceinline__ void products_64x256x16(float (&d)[128], const std::uint32_t (&a)[4], std::uint64_t b) {
#ifdef DBLR_EMULATED
  emulated::products<E>(d, a, b, 256);
#else
#define DBLR_WGMMA(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
               "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
               "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
               "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, " \
               "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
               "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
               "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, " \
               "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127 " \
               "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
               "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
               "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
               "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
               "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
               "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
               "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
               "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), \
               "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), \
               "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), \
               "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), \
               "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), \
               "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), \
               "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), \
               "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), \
               "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), \
               "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (kIsF16<E>) {
    DBLR_WGMMA("f16");
  } else {
    DBLR_WGMMA("bf16");
  }
#undef DBLR_WGMMA
#endif
}

// Descriptor of a matrix that lies depth by depth (transposed, "MN-major"), with the same swizzle: a row of 128 bytes
// is one depth of 64 rows of A or columns of B, eight depths an atom. The next 64 rows or columns start `leading` bytes
// further, a multiple of 16. Depth k starts at first + 128 k bytes. `first` may lie inside an atom, as above.
__device__ __forceinline__ std::uint64_t depths_descriptor(SharedAddress first, int leading) {
  constexpr std::uint64_t stride = 1024 / 16, swizzle_128 = 1;
  return (first & 0x3ffff) >> 4 | static_cast<std::uint64_t>(leading >> 4) << 16 | stride << 32 | swizzle_128 << 62;
}

// d (64 x 192, float32, as above; d[i] holds columns 64 i to 64 i + 63) += a (64 x 16) b (16 x 192), both in shared memory
// depth by depth.
template <class E>
__device__ __forceinline__ void products_64x192x16(float (&d)[3][32], std::uint64_t a, std::uint64_t b) {
  static_assert(sizeof(E) == 2);  // no other type may be transposed
#ifdef DBLR_EMULATED
  emulated::products<E>(&d[0][0], a, b, 192);
#else
#define DBLR_WGMMA(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type " {" \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
               "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
               "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, " \
               "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
               "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95 " \
               "}, %96, %97, 1, 1, 1, 1, 1;" \
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[0][4]), "+f"(d[0][5]), \
               "+f"(d[0][6]), "+f"(d[0][7]), "+f"(d[0][8]), "+f"(d[0][9]), "+f"(d[0][10]), "+f"(d[0][11]), \
               "+f"(d[0][12]), "+f"(d[0][13]), "+f"(d[0][14]), "+f"(d[0][15]), "+f"(d[0][16]), "+f"(d[0][17]), \
               "+f"(d[0][18]), "+f"(d[0][19]), "+f"(d[0][20]), "+f"(d[0][21]), "+f"(d[0][22]), "+f"(d[0][23]), \
               "+f"(d[0][24]), "+f"(d[0][25]), "+f"(d[0][26]), "+f"(d[0][27]), "+f"(d[0][28]), "+f"(d[0][29]), \
               "+f"(d[0][30]), "+f"(d[0][31]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), \
               "+f"(d[1][4]), "+f"(d[1][5]), "+f"(d[1][6]), "+f"(d[1][7]), "+f"(d[1][8]), "+f"(d[1][9]), \
               "+f"(d[1][10]), "+f"(d[1][11]), "+f"(d[1][12]), "+f"(d[1][13]), "+f"(d[1][14]), "+f"(d[1][15]), \
               "+f"(d[1][16]), "+f"(d[1][17]), "+f"(d[1][18]), "+f"(d[1][19]), "+f"(d[1][20]), "+f"(d[1][21]), \
               "+f"(d[1][22]), "+f"(d[1][23]), "+f"(d[1][24]), "+f"(d[1][25]), "+f"(d[1][26]), "+f"(d[1][27]), \
               "+f"(d[1][28]), "+f"(d[1][29]), "+f"(d[1][30]), "+f"(d[1][31]), "+f"(d[2][0]), "+f"(d[2][1]), \
               "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[2][4]), "+f"(d[2][5]), "+f"(d[2][6]), "+f"(d[2][7]), \
               "+f"(d[2][8]), "+f"(d[2][9]), "+f"(d[2][10]), "+f"(d[2][11]), "+f"(d[2][12]), "+f"(d[2][13]), \
               "+f"(d[2][14]), "+f"(d[2][15]), "+f"(d[2][16]), "+f"(d[2][17]), "+f"(d[2][18]), "+f"(d[2][19]), \
               "+f"(d[2][20]), "+f"(d[2][21]), "+f"(d[2][22]), "+f"(d[2][23]), "+f"(d[2][24]), "+f"(d[2][25]), \
               "+f"(d[2][26]), "+f"(d[2][27]), "+f"(d[2][28]), "+f"(d[2][29]), "+f"(d[2][30]), "+f"(d[2][31]) \
               : "l"(a), "l"(b))
  if constexpr (kIsF16<E>) {
    DBLR_WGMMA("f16");
  } else {
    DBLR_WGMMA("bf16");
  }
#undef DBLR_WGMMA
#endif
}

}  // namespace dblr
