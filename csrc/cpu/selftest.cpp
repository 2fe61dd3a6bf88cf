// Runs every op on every instruction set that this CPU has, on sizes that leave edges everywhere, for sanitizers to
// watch. Convolutions are compared with plain loops, the rest with the portable kernels. Built by
// DBLR_FAST_SANITIZE=address,undefined (see setup.py); precision is judged by the Python tests. With the argument
// `strips` only what threads do of a network side by side, for DBLR_FAST_SANITIZE=thread, where they fall behind one
// another at random.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "fingerprint.h"
#include "network.h"
#include "ops.h"
#include "winograd.h"

using namespace dblr;

namespace {

int failures = 0;

void expect(bool right, const std::string& what) {
  if (right) return;
  failures++;
  std::printf("FAILED: %s\n", what.c_str());
}

template <class T> T number(double x) { return static_cast<T>(x); }
template <> Bf16 number(double x) { return to_bf16(static_cast<float>(x)); }
template <class T> double value(T x) { return static_cast<double>(x); }
double value(Bf16 x) { return to_float(x); }

// Random memory of exactly the size asked for, so that a sanitizer sees one element too many.
template <class T> class Memory {
 public:
  T* random(Index count, double scale = 1) {
    std::vector<T> v(count);
    for (T& x : v) x = number<T>(scale * (static_cast<double>(engine_() % 20001) / 10000 - 1));
    return keep(std::move(v));
  }
  T* positive(Index count) {
    T* p = random(count);
    for (Index i = 0; i < count; i++) p[i] = number<T>(std::abs(value(p[i])) + 0.5);
    return p;
  }
  T* poisoned(Index count) { return keep(std::vector<T>(count, number<T>(NAN))); }
  Map<T> map(Index n, Index c, Index h, Index w, bool filled) {
    const Index count = n * c * h * w;
    return {filled ? random(count) : poisoned(count), n, c, h, w, h * w * c, 1, w * c, c};
  }
  // All that was left unfilled, in order: the results.
  std::vector<double> results() const {
    std::vector<double> all;
    for (std::size_t i = 0; i < kept_.size(); i++) {
      for (std::size_t e = 0; result_[i] && e < kept_[i].size(); e++) all.push_back(value(kept_[i][e]));
    }
    return all;
  }

 private:
  T* keep(std::vector<T> v) {
    result_.push_back(!v.empty() && std::isnan(value(v[0])));
    kept_.push_back(std::move(v));
    return kept_.back().data();
  }
  std::mt19937 engine_{1};
  std::vector<std::vector<T>> kept_;
  std::vector<bool> result_;
};

template <class T> void plain_convolution(int threads, Index n, Index h, Index w, Index in, Index out, int tile) {
  Memory<T> m;
  const Map<T> x = m.map(n, in, h, w, true), y = m.map(n, out, h, w, false);
  const T *weight = m.random(out * in * 9), *bias = m.random(out);
  const Run<T> run(threads);
  const Filter<T> filter = forward_filter(weight, out, in);
  const Weights<T> packed(run, filter, bias, nullptr, winograd_tile(run.kernels, filter, tile));
  Convolution<T> c;
  c.source = copy_of<T>(constant(x));
  c.region = whole(h, w);
  c.out = y;
  convolve(run, packed, c);
  double worst = 0;
  for (Index i = 0; i < n * h * w * out; i++) {
    const Index o = i % out, px = i / out % w, py = i / out / w % h, pn = i / out / w / h;
    double sum = bias[o];
    for (Index tap = 0; tap < 9; tap++) {
      const Index sy = py + tap / 3 - 1, sx = px + tap % 3 - 1;
      if (sy < 0 || sy >= h || sx < 0 || sx >= w) continue;
      for (Index k = 0; k < in; k++) {
        sum += static_cast<double>(x.data[((pn * h + sy) * w + sx) * in + k]) * weight[(o * in + k) * 9 + tap];
      }
    }
    worst = std::max(worst, std::abs(sum - y.data[i]));
  }
  const std::string shape = std::to_string(in) + " -> " + std::to_string(out);
  const std::string what = "convolution " + isa() + " " + shape + " by " + std::to_string(packed.tile);
  const double limit = packed.tile == 8 ? 1e-2 : packed.tile == 6 ? 1e-3 : 1e-4;  // as their points round
  expect(worst < limit, what + " off by " + std::to_string(worst));
}

template <class T> ConvNorm<T> conv_norm(Memory<T>& m, Index out, Index in, bool training, T* mean, T* var) {
  return {m.random(out * in * 9, 0.2),
          {training ? nullptr : m.random(out), m.random(out), m.random(out), mean, var, 1e-5}};
}
template <class T> ConvNormGradient<T> gradient(Memory<T>& m, Index out, Index in) {
  return {m.poisoned(out * in * 9), m.poisoned(out), m.poisoned(out), m.poisoned(out)};
}

std::vector<double> joined(std::vector<double> a, const std::vector<double>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// S: the type of maps.
template <class T, class S = T>
std::vector<double> normed_ops(int threads, Index n, Index h, Index w, Index in, Index out, bool training) {
  Memory<T> m;
  Memory<S> maps;
  const auto statistics = [&](Index c) { return training ? m.poisoned(c) : m.positive(c); };
  const Map<S> x = maps.map(n, in, h, w, true), grad = maps.map(n, out, h, w, true);
  const Map<S> back = maps.map(n, in, h, w, true);
  T *mean = statistics(out), *var = statistics(out), *mean2 = statistics(in), *var2 = statistics(in);
  const ConvNorm<T> first = conv_norm(m, out, in, training, mean, var);
  const ConvNorm<T> second = conv_norm(m, in, out, training, mean2, var2);
  const Map<S> y = maps.map(n, out, h, w, false), z = maps.map(n, out, h, w, false);
  const Map<S> z2 = maps.map(n, in, h, w, false), dx = maps.map(n, in, h, w, false);
  const Map<S> scratch = maps.map(n, out, h, w, false), yb = maps.map(n, in, h, w, false);
  conv_bn_act<T, S>(threads, constant(x), first, constant(grad), y, {}, mean, var, true, training);
  conv_bn_act<T, S>(threads, constant(x), first, {}, y, z, mean, var, true, training);
  conv_bn_act_backward<T, S>(threads, constant(grad), constant(x), first, constant(z), dx, gradient(m, out, in), true,
                          training);
  residual_block<T, S>(threads, constant(x), first, second, yb, scratch, {}, false, mean, var, mean2, var2, training);
  residual_block<T, S>(threads, constant(x), first, second, yb, scratch, {}, true, mean, var, mean2, var2, training);
  residual_block<T, S>(threads, constant(x), first, second, yb, scratch, z2, true, mean, var, mean2, var2, training);
  for (const std::array<bool, 2> kept : {std::array{true, true}, std::array{true, false}, std::array{false, false}}) {
    const Map<S>& z1 = kept[0] ? scratch : z;
    const Map<S>& free = kept[0] ? z : scratch;
    residual_block_backward<T, S>(threads, constant(back), constant(x), first, second, {z1, z2, free}, kept, dx,
                                  gradient(m, out, in), gradient(m, in, out), training);
  }
  return joined(m.results(), maps.results());
}

template <class T, class S = T>
std::vector<double> ends(int threads, Index n, Index h, Index w, Index middle = 13, Index width = 19, Index tail = 37) {
  const Index frames = 5;
  Memory<T> m;
  Memory<S> maps;
  const Run<T> run(threads);
  const ConvPair<T> s = {m.random(middle * frames * 9, 0.2), m.random(middle), m.random(width * middle * 9, 0.2),
                         m.random(width), frames, middle, width};
  const Map<S> x = maps.map(n, frames, h, w, true), y = maps.map(n, width, h, w, false);
  const Map<S> dx = maps.map(n, frames, h, w, false), grad = maps.map(n, width, h, w, true);
  const Map<S> thin = maps.map(n, 1, h, w, true);
  const Map<T> out = m.map(n, 1, h, w, false);
  {
    const auto first = layer_weights<S>(run, forward_filter(s.w1, middle, frames), s.b1);
    const auto second = layer_weights<S>(run, forward_filter(s.w2, width, middle), s.b2);
    stem<T, S>(run, constant(x), first, second, whole(h, w), y);
  }
  stem_backward<T, S>(threads, constant(grad), constant(x), constant(y), s, dx, m.poisoned(middle * frames * 9),
                   m.poisoned(middle), m.poisoned(width * middle * 9), m.poisoned(width));
  const ConvPair<T> t = {m.random(tail * width * 9, 0.1), m.random(tail), m.random(tail * tail * 9, 0.1),
                         m.random(tail), width, tail, tail};
  const T* w3 = m.random(tail * 9, 0.1);
  const Map<S> h1 = maps.map(n, tail, h, w, false), h2 = maps.map(n, tail, h, w, false);
  const Map<S> back = maps.map(n, width, h, w, false);
  const Map<T> taps = {m.poisoned(n * 9 * h * w), n, 9, h, w, 9 * h * w, h * w, w, 1};
  const auto first = layer_weights<S>(run, forward_filter(t.w1, tail, width), t.b1);
  const auto second = layer_weights<S>(run, forward_filter(t.w2, tail, tail), t.b2);
  const auto last = layer_weights<S>(run, tap_filter(w3, tail));
  reconstruct<T, S>(run, constant(y), {&first, &second, &last, T(0.5)}, whole(h, w), taps, out, {}, {});
  reconstruct<T, S>(run, constant(y), {&first, &second, &last, T(0.5)}, whole(h, w), taps, out, h1, h2);
  reconstruct_backward<T, S>(threads, constant(thin), constant(y), constant(h1), constant(h2), t, w3, back,
                          m.poisoned(tail * width * 9), m.poisoned(tail), m.poisoned(tail * tail * 9),
                          m.poisoned(tail), m.poisoned(tail * 9), m.poisoned(1));
  return joined(m.results(), maps.results());
}

// middle, width: of 16 and more by Winograd's transforms and streamed, or, where there is AMX, in bf16; of 32 by AMX in
// split maps too; of 6 directly.
std::vector<double> network(int threads, Index h, Index w, Network::Level level, Index middle = 16, Index width = 16) {
  const Index frames = 5, tail = 32;
  Memory<float> m;
  const ConvPair<float> head = {m.random(middle * frames * 9, 0.3), m.random(middle), m.random(width * middle * 9, 0.3),
                                m.random(width), frames, middle, width};
  std::vector<Network::Layer> body;
  for (int i = 0; i < 4; i++) body.push_back({m.random(width * width * 9, 0.2), m.random(width)});
  const ConvPair<float> end = {m.random(tail * width * 9, 0.2), m.random(tail), m.random(tail * tail * 9, 0.2),
                               m.random(tail), width, tail, tail};
  const Network net(threads, {frames, middle, width, tail}, head, body, end, m.random(tail * 9), 0.5f, true, level);
  const Map<float> x = m.map(1, frames, h, w, true), y = m.map(1, 1, h, w, false), part = m.map(1, 1, h, w, false);
  const auto run = [&](const Rect& valid, const Map<float>& to, std::size_t most = SIZE_MAX) {
    const std::size_t bytes = net.workspace_bytes(h, w, valid, most);
    std::vector<float> workspace(bytes / sizeof(float), NAN);
    net.run(threads, constant(x), valid, workspace.data(), bytes, to);
  };
  run(whole(h, w), part, 0);  // by the lowest strips
  run(whole(h, w), y);
  expect(std::equal(y.data, y.data + h * w, part.data), "network in little memory");
  float size = 1;
  for (Index i = 0; i < h * w; i++) size = std::max(size, std::abs(y.data[i]));
  const float limit = level == Network::Level::half ? 0.1f : level == Network::Level::bf16 ? 0.1f * size : 1e-3f;
  for (const Rect& r : {Rect{0, h, 0, w}, Rect{0, 1, 0, 1}, Rect{h - 1, h, w - 1, w}, Rect{h / 3, h / 2 + 1, w / 4, w}}) {
    run(r, part);
    for (Index i = r.y0; i < r.y1; i++) {
      for (Index j = r.x0; j < r.x1; j++) {
        const float off = std::abs(part.data[i * w + j] - y.data[i * w + j]);
        if (!(off < limit)) return expect(false, "network on a part, off by " + std::to_string(off)), m.results();
      }
    }
  }
  return m.results();
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0, scale = 1;
  for (std::size_t i = 0; i < a.size(); i++) {
    worst = std::max(worst, std::isfinite(a[i]) ? std::abs(a[i] - b[i]) : INFINITY);
    scale = std::max(scale, std::abs(b[i]));
  }
  return worst / scale;
}

void ops_in_bf16(int threads, Index n, Index h, Index w) {
  normed_ops<float, Bf16>(threads, n, h, w, 5, 19, false);
  normed_ops<float, Bf16>(threads, n, h, w, 16, 33, true);
  normed_ops<float, Bf16>(threads, n, h, w, 16, 32, true);
  ends<float, Bf16>(threads, n, h, w);
  ends<float, Bf16>(threads, n, h, w, 16, 32, 48);
}

template <class T> void all(const std::string& name, int threads, Index n, Index h, Index w) {
  using Op = std::function<std::vector<double>()>;
  std::vector<Op> ops = {[&] { return normed_ops<T>(threads, n, h, w, 5, 19, false); },
                         [&] { return normed_ops<T>(threads, n, h, w, 16, 33, true); },
                         [&] { return ends<T>(threads, n, h, w); }};
  for (const auto level : {Network::Level::exact, Network::Level::fast, Network::Level::half}) {
    if (sizeof(T) == 4) ops.push_back([&, level] { return network(threads, h, w, level); });
    if (sizeof(T) == 4) ops.push_back([&, level] { return network(threads, h, w, level, 6); });
  }
  for (std::size_t i = 0; i < ops.size(); i++) {
    set_isa("portable");
    const std::vector<double> expected = ops[i]();
    set_isa(name);
    const double off = distance(ops[i](), expected);
    // A value near zero may fall on either side of a ReLU; anything worse is not a number or far away.
    expect(off < 0.05, name + " op " + std::to_string(i) + " off by " + std::to_string(off));
  }
  // For the sanitizers, and a part against the whole.
  if (bf16_kernels()) network(threads, h, w, Network::Level::bf16);
  if (bf16_kernels() && sizeof(T) == 4) ops_in_bf16(threads, n, h, w);
  for (Index channels : {1, 5, 16, 33, 67}) plain_convolution<T>(threads, n, h, w, channels, 68 - channels, 0);
  for (int tile : {4, 6, 8}) {
    for (Index channels : {16, 32, 160}) plain_convolution<T>(threads, n, h, w, channels, 176 - channels, tile);
  }
}

// Networks where threads begin a layer before the last one is done: of strips that are wide, strips that are high, and of
// one. A part is computed layer by layer.
void strips() {
  using Level = Network::Level;
  for (const auto level : {Level::exact, Level::fast, Level::half, Level::bf16}) {
    if (level == Level::bf16 && !bf16_kernels() && !amx_kernels()) continue;
    for (const auto& [h, w] : {std::array<Index, 2>{26, 2600}, {1100, 61}, {120, 61}}) network(3, h, w, level);
  }
  // By AMX's model, for sanitizers do not see what its own instructions read.
  const std::string best = isa();
  for (const auto& [name, reason] : isas()) {
    if (name != "amx_model" || !reason.empty()) continue;
    set_isa(name);
    network(3, 13, 2530, Level::half, 16, 32);
    network(3, 540, 61, Level::bf16, 16, 32);
    set_isa(best);
  }
}

}  // namespace

// selftest [strips | PART PARTS]: all of it; networks by strips alone; or one of so many parts, for processes to share.
int main(int arguments, char** argument) {
  const int part = arguments > 2 ? std::atoi(argument[1]) : 0, parts = arguments > 2 ? std::atoi(argument[2]) : 1;
  int number = 0;
  const auto mine = [&] { return number++ % parts == part; };
  if (mine()) {
    strips();
    std::printf("strips on %s: %d failures\n", isa().c_str(), failures);
  }
  if (arguments == 2 && argument[1] == std::string("strips")) return failures != 0;
  for (const auto& [name, reason] : isas()) {
    if (!reason.empty()) {
      std::printf("%s: left out, %s\n", name.c_str(), reason.c_str());
      continue;
    }
    for (const auto& [n, h, w] : {std::array<Index, 3>{1, 1, 7}, {2, 3, 5}, {1, 19, 67}}) {
      for (int threads : {1, 3}) {
        if (!mine()) continue;
        if (name.rfind("amx", 0) == 0) {  // all else is avx512's
          set_isa(name);
          network(threads, h, w, Network::Level::bf16);
          network(threads, h, w, Network::Level::half, 16, 32);
          ops_in_bf16(threads, n, h, w);
          continue;
        }
        all<float>(name, threads, n, h, w);
        all<double>(name, threads, n, h, w);
      }
    }
    std::printf("%s: done\n", name.c_str());
  }
  const std::vector<char> bytes(77, 'x');
  for (std::size_t i = 0; i < bytes.size(); i++) fingerprint(bytes.data(), i, 0);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
