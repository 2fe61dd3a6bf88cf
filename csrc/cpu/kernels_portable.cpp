// 16-byte vectors and nothing that the baseline of the target lacks.
#define DBLR_BYTES 16
#define DBLR_NATIVE 16
#define DBLR_PIXELS 4
#define DBLR_GROUP 1
#define DBLR_TABLE table_portable
#include "kernels_source.h"
