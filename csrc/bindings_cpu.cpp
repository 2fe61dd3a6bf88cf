// The Python module dblr_fast._cpu: the ops of cpu/ops.h on addresses, sizes and strides.
//
// Each op takes the number of threads first, then its tensors as views (see view.h), outputs among them. The
// GIL is released while it runs. A refusal is a ValueError.
#include "view.h"

#include <map>

#include "cpu/fingerprint.h"
#include "cpu/isa.h"
#include "cpu/network.h"
#include "cpu/ops.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace dblr {
namespace {

bool has_bf16() { return bf16_kernels() || amx_kernels(); }

// f(T(), S()): the types of the arithmetic and of the maps, by the dtype of the map `v`.
template <class F> void by_dtype(const View& v, const F& f) {
  if (v.element == 8) return f(double(), double());
  if (v.element == 4) return f(float(), float());
  if (!has_bf16()) throw std::invalid_argument("This CPU makes no products in bfloat16: convert maps to float32.");
  f(float(), Bf16());
}

// v: weight, bias, gamma, beta, mean, var. The forward pass of training has no mean and var yet.
template <class T>
ConvNorm<T> conv_norm(const std::array<View, 6>& v, Index c, Index in, double eps, bool training, bool forward) {
  const auto statistic = [&](int i, const char* name) {
    return training && forward ? nullptr : array<const T>(v[i], name, {c});
  };
  return {array<const T>(v[0], "weight", {c, in, 3, 3}),
          {training ? nullptr : array<const T>(v[1], "bias", {c}), array<const T>(v[2], "gamma", {c}),
           array<const T>(v[3], "beta", {c}), statistic(4, "mean"), statistic(5, "var"), eps}};
}

// v: gradients of weight, bias, gamma, beta.
template <class T> ConvNormGradient<T> conv_norm_gradient(const std::array<View, 4>& v, Index out, Index in) {
  return {array<T>(v[0], "dweight", {out, in, 3, 3}), array<T>(v[1], "dbias", {out}), array<T>(v[2], "dgamma", {out}),
          array<T>(v[3], "dbeta", {out})};
}

template <class T> T* statistic(const View& v, const char* name, Index c, bool wanted) {
  return wanted ? array<T>(v, name, {c}) : nullptr;
}

void bind_conv_bn_act(py::module_& m) {
  m.def("conv_bn_act",
        [](int threads, View x, std::array<View, 6> conv, View residual, View y, View z, View mean, View var, bool relu,
           bool training, double eps) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const auto ys = map<S>(y, "y", {xs.n, -1, xs.h, xs.w});
            const std::array<Index, 4> like = {ys.n, ys.c, ys.h, ys.w};
            conv_bn_act<T, S>(threads, xs, conv_norm<T>(conv, ys.c, xs.c, eps, training, true),
                              optional_map<const S>(residual, "residual", like), ys, optional_map<S>(z, "z", like),
                              statistic<T>(mean, "mean", ys.c, training), statistic<T>(var, "var", ys.c, training),
                              relu, training);
          });
        },
        py::call_guard<py::gil_scoped_release>());
  m.def("conv_bn_act_backward",
        [](int threads, View grad, View x, std::array<View, 6> conv, View z, View dx, std::array<View, 4> d, bool relu,
           bool training, double eps) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const auto zs = map<const S>(z, "z", {xs.n, -1, xs.h, xs.w});
            conv_bn_act_backward<T, S>(threads, map<const S>(grad, "grad", {zs.n, zs.c, zs.h, zs.w}), xs,
                                       conv_norm<T>(conv, zs.c, xs.c, eps, training, false), zs,
                                       optional_map<S>(dx, "dx", {xs.n, xs.c, xs.h, xs.w}),
                                       conv_norm_gradient<T>(d, zs.c, xs.c), relu, training);
          });
        },
        py::call_guard<py::gil_scoped_release>());
}

void bind_residual_block(py::module_& m) {
  m.def("residual_block",
        [](int threads, View x, std::array<View, 6> first, std::array<View, 6> second, View y, View middle, View z2,
           bool gradient, std::array<View, 4> statistics, bool training, double eps) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = map<const S>(x, "x");
            const auto mid = map<S>(middle, "middle", {xs.n, -1, xs.h, xs.w});
            const std::array<Index, 4> like = {xs.n, xs.c, xs.h, xs.w};
            residual_block<T, S>(threads, xs, conv_norm<T>(first, mid.c, xs.c, eps, training, true),
                                 conv_norm<T>(second, xs.c, mid.c, eps, training, true), map<S>(y, "y", like), mid,
                                 optional_map<S>(z2, "z2", like), gradient,
                                 statistic<T>(statistics[0], "mean1", mid.c, training),
                                 statistic<T>(statistics[1], "var1", mid.c, training),
                                 statistic<T>(statistics[2], "mean2", xs.c, training),
                                 statistic<T>(statistics[3], "var2", xs.c, training), training);
          });
        },
        py::call_guard<py::gil_scoped_release>());
  m.def("residual_block_backward",
        [](int threads, View grad, View x, std::array<View, 6> first, std::array<View, 6> second,
           std::array<View, 3> maps, std::array<bool, 2> kept_maps, View dx, std::array<View, 4> d1,
           std::array<View, 4> d2, bool training, double eps) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const auto zs = map<S>(maps[0], "z1", {xs.n, -1, xs.h, xs.w});
            const std::array<Index, 4> like = {xs.n, xs.c, xs.h, xs.w};
            residual_block_backward<T, S>(threads, map<const S>(grad, "grad", like), xs,
                                          conv_norm<T>(first, zs.c, xs.c, eps, training, false),
                                          conv_norm<T>(second, xs.c, zs.c, eps, training, false),
                                          {zs, map<S>(maps[1], "z2", like),
                                           map<S>(maps[2], "scratch", {zs.n, zs.c, zs.h, zs.w})},
                                          kept_maps, optional_map<S>(dx, "dx", like), conv_norm_gradient<T>(d1, zs.c, xs.c),
                                          conv_norm_gradient<T>(d2, xs.c, zs.c), training);
          });
        },
        py::call_guard<py::gil_scoped_release>());
}

// weights: w1, b1, w2, b2 of two convolutions in -> middle -> out.
template <class T> ConvPair<T> conv_pair(const std::array<View, 4>& v, Index in) {
  const Index middle = v[0].shape[0], out = v[2].shape[0];
  return {array<T>(v[0], "w1", {middle, in, 3, 3}), array<T>(v[1], "b1", {middle}),
          array<T>(v[2], "w2", {out, middle, 3, 3}), array<T>(v[3], "b2", {out}), in, middle, out};
}

void bind_stem(py::module_& m) {
  m.def("stem",
        [](int threads, View x, std::array<View, 4> weights, View y) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const ConvPair<T> p = conv_pair<T>(weights, xs.c);
            const Run<T> run(threads);
            const auto first = layer_weights<S>(run, forward_filter(p.w1, p.middle, p.in), p.b1);
            const auto second = layer_weights<S>(run, forward_filter(p.w2, p.out, p.middle), p.b2);
            stem<T, S>(run, xs, first, second, whole(xs.h, xs.w), map<S>(y, "y", {xs.n, p.out, xs.h, xs.w}));
          });
        },
        py::call_guard<py::gil_scoped_release>());
  m.def("stem_backward",
        [](int threads, View grad, View x, View y, std::array<View, 4> weights, View dx, std::array<View, 4> d) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const ConvPair<T> p = conv_pair<T>(weights, xs.c);
            const std::array<Index, 4> like = {xs.n, p.out, xs.h, xs.w};
            stem_backward<T, S>(threads, map<const S>(grad, "grad", like), xs, map<const S>(y, "y", like), p,
                                optional_map<S>(dx, "dx", {xs.n, xs.c, xs.h, xs.w}),
                                array<T>(d[0], "dw1", {p.middle, p.in, 3, 3}), array<T>(d[1], "db1", {p.middle}),
                                array<T>(d[2], "dw2", {p.out, p.middle, 3, 3}), array<T>(d[3], "db2", {p.out}));
          });
        },
        py::call_guard<py::gil_scoped_release>());
}

// Planes [n][9][h][w], contiguous.
template <class T> Map<T> planes(const View& v, Index n, Index h, Index w) {
  return {array<T>(v, "taps", {n, 9, h, w}), n, 9, h, w, 9 * h * w, h * w, w, 1};
}

void bind_reconstruct(py::module_& m) {
  m.def("reconstruct",
        [](int threads, View x, std::array<View, 4> weights, View w3, View b3, View taps, View y, View h1, View h2) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const ConvPair<T> p = conv_pair<T>(weights, xs.c);
            const Run<T> run(threads);
            const auto first = layer_weights<S>(run, forward_filter(p.w1, p.middle, p.in), p.b1);
            const auto second = layer_weights<S>(run, forward_filter(p.w2, p.out, p.middle), p.b2);
            const auto last = layer_weights<S>(run, tap_filter<T>(array<T>(w3, "w3", {1, p.out, 3, 3}), p.out));
            reconstruct<T, S>(run, xs, {&first, &second, &last, *array<T>(b3, "b3", {1})}, whole(xs.h, xs.w),
                              planes<T>(taps, xs.n, xs.h, xs.w), map<T>(y, "y", {xs.n, 1, xs.h, xs.w}),
                              optional_map<S>(h1, "h1", {xs.n, p.middle, xs.h, xs.w}),
                              optional_map<S>(h2, "h2", {xs.n, p.out, xs.h, xs.w}));
          });
        },
        py::call_guard<py::gil_scoped_release>());
  m.def("reconstruct_backward",
        [](int threads, View grad, View x, View h1, View h2, View w1, View w2, View w3, View dx, std::array<View, 6> d) {
          by_dtype(x, [&](auto type, auto kept) {
            using T = decltype(type);
            using S = decltype(kept);
            const auto xs = any_map<const S>(x, "x");
            const auto first = map<const S>(h1, "h1", {xs.n, -1, xs.h, xs.w});
            const auto second = map<const S>(h2, "h2", {xs.n, -1, xs.h, xs.w});
            const Index c1 = first.c, c2 = second.c;
            const ConvPair<T> p = {array<T>(w1, "w1", {c1, xs.c, 3, 3}), nullptr, array<T>(w2, "w2", {c2, c1, 3, 3}),
                                   nullptr, xs.c, c1, c2};
            reconstruct_backward<T, S>(
                threads, map<const S>(grad, "grad", {xs.n, 1, xs.h, xs.w}), xs, first, second, p,
                array<T>(w3, "w3", {1, c2, 3, 3}), optional_map<S>(dx, "dx", {xs.n, xs.c, xs.h, xs.w}),
                array<T>(d[0], "dw1", {c1, xs.c, 3, 3}), array<T>(d[1], "db1", {c1}),
                array<T>(d[2], "dw2", {c2, c1, 3, 3}), array<T>(d[3], "db2", {c2}),
                array<T>(d[4], "dw3", {1, c2, 3, 3}), array<T>(d[5], "db3", {1}));
          });
        },
        py::call_guard<py::gil_scoped_release>());
}

using Corners = std::array<Index, 4>;

Rect valid_part(const Corners& v, Index h, Index w) {
  if (v[0] < 0 || v[2] < 0 || v[1] > h || v[3] > w || v[0] >= v[1] || v[2] >= v[3]) {
    throw std::invalid_argument("valid (y0, y1, x0, x1) must be a rectangle of at least one pixel within " +
                                std::to_string(h) + " x " + std::to_string(w) + ", got " + text(v.data(), 4) + ".");
  }
  return {v[0], v[1], v[2], v[3]};
}

void bind_network(py::module_& m) {
  py::class_<Network>(m, "Network")
      .def(py::init([](int threads, std::array<View, 4> stem, std::vector<std::pair<View, View>> body,
                       std::array<View, 4> tail, View w3, View b3, bool tail_skip, const std::string& level) {
             const ConvPair<float> head = conv_pair<float>(stem, stem[0].shape[1]);
             const ConvPair<float> end = conv_pair<float>(tail, head.out);
             if (end.middle != end.out) throw std::invalid_argument("w1 and w2 of the tail must have as many outputs.");
             if (body.empty() || body.size() % 2) {
               throw std::invalid_argument("body must hold an even number of convolutions, at least two, got " +
                                           std::to_string(body.size()) + ".");
             }
             using Level = Network::Level;
             const std::map<std::string, Level> levels = {
                 {"exact", Level::exact}, {"fast", Level::fast}, {"half", Level::half}, {"bf16", Level::bf16}};
             const auto found = levels.find(level);
             if (found == levels.end()) throw std::invalid_argument("There is no level of precision '" + level + "'.");
             std::vector<Network::Layer> layers;
             for (const auto& [w, b] : body) {
               layers.push_back({array<float>(w, "weight", {head.out, head.out, 3, 3}),
                                 array<float>(b, "bias", {head.out})});
             }
             return std::make_unique<Network>(threads, Network::Shape{head.in, head.middle, head.out, end.out}, head,
                                              layers, end, array<float>(w3, "w3", {1, end.out, 3, 3}),
                                              *array<float>(b3, "b3", {1}), tail_skip, found->second);
           }),
           py::call_guard<py::gil_scoped_release>())
      .def("workspace_bytes",
           [](const Network& self, Index h, Index w, Corners valid, std::size_t most) {
             return self.workspace_bytes(h, w, valid_part(valid, h, w), most);
           })
      .def("thread_bytes",
           [](const Network& self, Index h, Index w, Corners valid) {
             return self.thread_bytes(h, w, valid_part(valid, h, w));
           })
      .def("run",
           [](const Network& self, int threads, View x, Corners valid, std::uintptr_t workspace, std::size_t bytes,
              View y) {
             const auto xs = any_map<const float>(x, "frames", {1, self.shape().frames, -1, -1});
             const Rect part = valid_part(valid, xs.h, xs.w);
             auto ys = map<float>(y, "y", {1, 1, part.h(), part.w()});
             ys.data -= part.y0 * ys.sh + part.x0 * ys.sw;
             ys.h = xs.h;
             ys.w = xs.w;
             const std::size_t needed = self.workspace_bytes(xs.h, xs.w, part, bytes);
             if (bytes < needed) {
               throw std::invalid_argument("workspace must hold " + std::to_string(needed) + " bytes, got " +
                                           std::to_string(bytes) + ".");
             }
             self.run(threads, xs, part, reinterpret_cast<float*>(workspace), bytes, ys);
           },
           py::call_guard<py::gil_scoped_release>());
}

}  // namespace
}  // namespace dblr

PYBIND11_MODULE(_cpu, m) {
  using namespace dblr;
  m.doc() = "CPU kernels of dblr_fast. Called by dblr_fast.backends.cpu; not an interface for users.";
  m.def("isas", [] {
    py::dict all;
    for (const auto& [name, reason] : isas()) {
      all[py::str(name)] = reason.empty() ? py::object(py::none()) : py::object(py::str(reason));
    }
    return all;
  }, "Instruction sets that were built -> None, or why this CPU cannot run them.");
  m.def("isa", &isa, "The instruction set in use.");
  m.def("has_bf16", &has_bf16, "Whether it makes products in bf16, and the ops take maps in bfloat16.");
  m.def("set_isa", &set_isa, py::arg("name"), "Use another instruction set from now on, for tests.");
  m.def("use_openmp", [](std::uintptr_t address) { use_openmp(reinterpret_cast<OpenMP>(address)); }, py::arg("address"),
        "Address of GOMP_parallel of the OpenMP library that torch runs on; 0: plain threads.");
  m.def("has_openmp", &has_openmp, "Whether parallel regions run on torch's OpenMP pool.");
  m.def("fingerprint",
        [](const std::vector<std::pair<std::uintptr_t, std::size_t>>& parts) {
          py::gil_scoped_release release;
          std::uint64_t h = 0;
          for (const auto& [address, bytes] : parts) h = fingerprint(reinterpret_cast<const void*>(address), bytes, h);
          return h;
        },
        py::arg("parts"), "64-bit hash of the memory at (address, bytes), in order.");
  m.def("build_info", [] {
    py::dict d;
    d["version"] = DBLR_VERSION;
    d["compiler"] = DBLR_COMPILER;
    d["flags"] = DBLR_FLAGS;
    d["isas"] = DBLR_ISAS;
    return d;
  });
  bind_conv_bn_act(m);
  bind_residual_block(m);
  bind_stem(m);
  bind_reconstruct(m);
  bind_network(m);
}
