// The weight gradient's inner loops: 3 columns of the kernel x DBLR_GROUP input channels x V vectors of output
// channels in registers over all pixels of a tile.
namespace dblr {
namespace {

template <class T, int V>
void gradient_kernel_row(const T* x, Index x_row, const T* dz, Index rows, Index cols, T* out) {
  constexpr int L = kLanes<T>, I = DBLR_GROUP;
  Vec<T> sum[3 * I][V];
#pragma GCC unroll 16
  for (int t = 0; t < 3 * I; t++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[t][v] = broadcast(T(0));
  }
  for (Index y = 0; y < rows; y++) {
    const T* in = x + y * x_row;
    for (Index i = 0; i < cols; i++, in += I, dz += V * L) {
      Vec<T> grad[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) grad[v] = fetch<Vec<T>>(dz + v * L);
#pragma GCC unroll 16
      for (int t = 0; t < 3 * I; t++) {  // (dx, ic) is a run, as in the forward pass
        const Vec<T> value = broadcast(in[t]);
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[t][v] = fma(value, grad[v], sum[t][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < 3 * I; t++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      T* to = out + (t * V + v) * L;
      store(to, fetch<Vec<T>>(to) + sum[t][v]);
    }
  }
}

template <class T> void gradient(const Gradient<T>& a) {
  const Index x_row = (a.cols + 2) * DBLR_GROUP, plane = (a.rows + 2) * x_row;
  const auto kernel_row = a.vectors == 2 ? gradient_kernel_row<T, 2> : gradient_kernel_row<T, 1>;
  T* out = a.out;
  for (Index g = 0; g < a.groups; g++) {
    for (Index dy = 0; dy < 3; dy++, out += 3 * DBLR_GROUP * a.vectors * kLanes<T>) {
      kernel_row(a.x + g * plane + dy * x_row, x_row, a.dz, a.rows, a.cols, out);
    }
  }
}

}  // namespace
}  // namespace dblr
