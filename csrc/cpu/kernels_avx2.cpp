// 16 registers of 32 bytes: 6 pixels x 2 vectors of sums, two weights, one pixel.
#define DBLR_BYTES 32
#define DBLR_NATIVE 32
#define DBLR_PIXELS 6
#define DBLR_GROUP 2
#define DBLR_TABLE table_avx2
#include "kernels_source.h"
