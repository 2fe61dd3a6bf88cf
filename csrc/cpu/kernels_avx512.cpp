// 32 registers of 64 bytes: 12 pixels x 2 vectors of sums.
#define DBLR_BYTES 64
#define DBLR_NATIVE 64
#define DBLR_PIXELS 12
#define DBLR_GROUP 4
#define DBLR_TABLE table_avx512
#include "kernels_source.h"
