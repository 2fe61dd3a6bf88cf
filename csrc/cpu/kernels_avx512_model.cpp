// kernels_avx512.cpp with each 64-byte vector held as two of AVX2: same blocking, same packing, same order
// of sums, and so the same bits. It lets a CPU without AVX-512 test that path; it is not fast.
#define DBLR_BYTES 64
#define DBLR_NATIVE 32
#define DBLR_PIXELS 12
#define DBLR_GROUP 4
#define DBLR_TABLE table_avx512_model
#include "kernels_source.h"
