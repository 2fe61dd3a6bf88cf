#include "network.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "winograd.h"

namespace dblr {
namespace {

// A strip is of as many rows of tiles as fill so much of the third-level cache with what a layer gives of it (half so
// much in bf16): three such maps are in use at a time. The more rows, the less often all weights, 30 MB of them for
// F(4x4), 52 for F(6x6) and 82 for F(8x8), come from memory; in bf16 and by AMX, whose layers take half and a quarter of
// the time, the less often all threads wait for the last one. With half as many rows fast takes 9 % longer, half 4 %. A
// whole picture of up to kWholeBytes is one strip, and not skewed.
constexpr Index kWholeBytes = 4 << 20;
constexpr Index strip_bytes(Network::Level level, bool amx) {
  if (amx) return 8 << 20;
  return level == Network::Level::exact ? 2 << 20 : level == Network::Level::half ? 3 << 20 : 4 << 20;
}
// By AMX there are no tiles, but rows go in pairs, and a strip must have more than the two that outlive it.
constexpr int kAmxRows = 4;

}  // namespace

Network::Network(int threads, const Shape& shape, const ConvPair<float>& stem, const std::vector<Layer>& body,
                 const ConvPair<float>& tail, const float* w3, float b3, bool tail_skip, Level level)
    : shape_(shape), kernels_(kernels_of<float>(table())), bf16_(bf16_kernels()), level_(level), b3_(b3),
      tail_skip_(tail_skip) {
  if (level == Level::bf16 && !amx_kernels() && !bf16_) {
    throw std::invalid_argument("This CPU makes no products in bf16.");
  }
  const AmxKernels* amx = level == Level::bf16 || level == Level::half ? amx_kernels() : nullptr;
  const bool split = level == Level::half;
  const auto suits = [&](Index out, Index in) {
    return amx ? amx_suits(in, out, split)
               : winograd_tile<float>(kernels_, forward_filter<float>(nullptr, out, in)) != 0;
  };
  const auto all_suit = [&] {
    return suits(shape.width, shape.middle) && suits(shape.width, shape.width) && suits(shape.tail, shape.width) &&
           suits(shape.tail, shape.tail);
  };
  if (split && amx && !all_suit()) amx = nullptr;
  skewed_ = all_suit();
  if (!skewed_) {
    if (level == Level::half) level_ = Level::fast;
    if (level == Level::bf16) level_ = Level::exact;
    amx = nullptr;
  }
  tile_ = amx ? kAmxRows : level_ == Level::half ? 8 : level_ == Level::fast ? 6 : 4;
  const Run<float> run(threads, kernels_, bf16_);
  const auto pack = [&](std::vector<Weights<float>>& to, const float* w, const float* b, Index out, Index in) {
    const Filter<float> f = forward_filter(w, out, in);
    const int tile = winograd_tile(kernels_, f, tile_);
    to.emplace_back(run, f, b, nullptr, tile, tile && level_ == Level::bf16);
  };
  if (amx) {
    const auto pack_amx = [&](const float* w, const float* b, Index out, Index in) {
      amx_.emplace_back(*amx, threads, forward_filter(w, out, in), b, nullptr, split);
    };
    stem_.emplace_back(run, forward_filter(stem.w1, shape.middle, shape.frames), stem.b1);
    pack_amx(stem.w2, stem.b2, shape.width, shape.middle);
    for (const Layer& layer : body) pack_amx(layer.weight, layer.bias, shape.width, shape.width);
    pack_amx(tail.w1, tail.b1, shape.tail, shape.width);
    pack_amx(tail.w2, tail.b2, shape.tail, shape.tail);
    amx_.emplace_back(*amx, threads, tap_filter(w3, shape.tail), nullptr, nullptr, split);
    return;
  }
  pack(stem_, stem.w1, stem.b1, shape.middle, shape.frames);
  pack(stem_, stem.w2, stem.b2, shape.width, shape.middle);
  for (const Layer& layer : body) pack(body_, layer.weight, layer.bias, shape.width, shape.width);
  pack(tail_, tail.w1, tail.b1, shape.tail, shape.width);
  pack(tail_, tail.w2, tail.b2, shape.tail, shape.tail);
  tail_.emplace_back(run, tap_filter(w3, shape.tail));
}

// S: the type of the maps. Of Half, only of those within blocks: what blocks give is added up from one to the next, and
// rounding it would more than double the output's error, for 2 % of time; L33's is read once.
template <class S> struct Network::Maps {
  using Wide = std::conditional_t<std::is_same<S, Half>::value, float, S>;
  Maps(const Network& net, const Strips& strips, Index h, Index w, const Rect& valid, float* memory)
      : memory_(reinterpret_cast<char*>(memory)) {
    const Index layers = net.layers(), body = layers - 5, rows = strips.rows(), parts = net.split() ? 2 : 1;
    const Index width = net.shape_.width * parts, tail = net.shape_.tail * parts;
    // What layer 1, 2, ... gives, with rows for a reader `later` layers on.
    const auto map = [&](auto type, Index channels, Index layer, Index later) {
      using M = decltype(type);
      const Rect part = grow(valid, layers - layer, h, w);
      const Index shift = strips.shift(layer - 1), end = part.y1 + shift;
      const Index ring = std::min(strips.ring(later), (end + rows - 1) / rows * rows);
      return ring_map(take<M>(ring * part.w() * channels), channels, part, h, w, ring, shift);
    };
    // The same for readers that are at most two layers on. They read a strip while the layers take their turns with
    // it, so it lies at `place` until another layer's strip does; of skewed strips the last two rows are read in the
    // next turn too, and lie apart.
    const auto soon = [&](auto* place, Index channels, Index layer, Index later) {
      using M = std::remove_pointer_t<decltype(place)>;
      if (!net.skewed_) return map(M(), channels, layer, later);
      const Rect part = grow(valid, layers - layer, h, w);
      Map<M> m = ring_map(place, channels, part, h, w, rows, strips.shift(layer - 1));
      if (strips.skewed()) m.kept = take<M>(4 * part.w() * channels) - place;
      return m;
    };
    const auto turn = [&](Index channels, Index layer) {
      return net.skewed_ ? (strips.skewed() ? rows - 2 : rows) * grow(valid, layers - layer, h, w).w() * channels : 0;
    };
    middle = map(float(), net.shape_.middle, 1, 1);
    l2 = map(Wide(), width, 2, std::max<Index>(body, 1));
    // What blocks give takes turns in two places, one of them in that of L33's map, which also holds what lies within a
    // block: the body's last map, L33's input, must lie apart.
    const Index size = turn(width, 3), wide = turn(tail, layers - 2);
    Wide *const last = take<Wide>(size), *const others = take<Wide>(std::max(2 * size, wide));
    Wide* const places[2] = {last, others};
    for (Index i = 0; i < body; i += 2) {
      within.push_back(soon(reinterpret_cast<S*>(others + size), width, 3 + i, 1));
      blocks.push_back(soon(places[(body - 2 - i) / 2 % 2], width, 4 + i, 2));
    }
    h1 = soon(others, tail, layers - 2, 1);
    const Rect part = grow(valid, 1, h, w);
    taps = {nullptr, 1, 9, h, w, 0, 0, part.w(), 1, strips.ring(1), strips.shift(layers - 2)};
    taps.sc = taps.ring * taps.sh;
    taps.data = take<float>(9 * taps.sc) - part.x0;
  }
  Map<float> middle, taps;
  Map<Wide> l2, h1;
  std::vector<Map<S>> within;     // what the first layer of each block gives
  std::vector<Map<Wide>> blocks;  // and what the second
  std::size_t used = 0;

 private:
  template <class M> M* take(Index count) {
    M* const p = reinterpret_cast<M*>(memory_ + used);
    used += (count * sizeof(M) + 63) / 64 * 64;
    return p;
  }
  char* memory_;
};

Strips Network::strips_of(Index h, Index w, const Rect& valid, std::size_t most) const {
  if (!skewed_) return Strips(tile_);
  const Rect part = grow(valid, layers() - 2, h, w);  // what the body's input covers
  const Index row = std::max<Index>(part.w() * shape_.width * static_cast<Index>(sizeof(float)), 1);
  if (part.y1 * row <= kWholeBytes) return Strips((part.y1 + tile_ - 1) / tile_ * tile_);
  const Index bytes = strip_bytes(level_, !amx_.empty());
  Strips strips(std::max<Index>(bytes / (row * tile_), 1) * tile_, true);
  while (strips.rows() > tile_ && maps_bytes(strips, h, w, valid) > most) strips = Strips(strips.rows() - tile_, true);
  return strips;
}

std::size_t Network::maps_bytes(const Strips& strips, Index h, Index w, const Rect& valid) const {
  float base;  // only distances from it count
  if (level_ == Level::half && !split()) return Maps<Half>(*this, strips, h, w, valid, &base).used;
  if (level_ == Level::bf16 || split()) return Maps<Bf16>(*this, strips, h, w, valid, &base).used;
  return Maps<float>(*this, strips, h, w, valid, &base).used;
}

std::size_t Network::workspace_bytes(Index h, Index w, const Rect& valid, std::size_t most) const {
  return maps_bytes(strips_of(h, w, valid, most), h, w, valid);
}

std::size_t Network::thread_bytes(Index, Index, const Rect&) const {
  if (!amx_.empty()) return amx_tail_scratch(amx_[amx_.size() - 2], amx_.back());
  return tail_scratch(Run<float>(1, kernels_, bf16_), tail());
}

// L34's tasks are the longest, and the sums of its tap planes wait for all of them: the next strip's first two layers,
// which do not, go before.
void Network::taps_later(std::vector<Strips::Strip>& order) const {
  for (std::size_t i = 0; i + 2 < order.size(); i++) {
    if (order[i].layer != layers() - 1 || order[i + 1].layer != 0 || order[i + 2].layer != 1) continue;
    std::rotate(order.begin() + i, order.begin() + i + 1, order.begin() + i + 3);
  }
}

// Which strips share no memory but what the one reads of the other's, so that a thread need not wait for the others at
// the end of each; where maps of different widths lie in the same place all do.
void Network::let_begin_early(const std::vector<Strips::Strip>& order, std::size_t i, bool skewed, Stage& stage) const {
  const auto layer_at = [&](std::size_t back) { return back <= i ? order[i - back].layer : -1; };
  const Index layer = layer_at(0), tail = layers() - 2, wide = tail - 1;
  if (layer == 0) {
    stage.beside = layer_at(1) == tail ? 1 : 0;
  } else if (layer == tail + 1) {
    stage.beside = layer_at(1) == 1 ? 2 : 0;
  } else if (layer_at(1) == layer - 1 && layer != wide) {  // whose map lies in the place of what L32 reads
    // What a layer writes lies in the place of what the one before reads: of skewed strips two rows further down. By AMX
    // a task reads two columns to its right, of which the second meets zeros.
    stage.near = {1, skewed ? 3 : 1, amx_.empty() ? 1 : 2};
    stage.beside = layer == 1 && layer_at(2) == tail ? 2 : 1;
  }
}

void Network::run(int threads, Map<const float> x, const Rect& valid, float* workspace, std::size_t bytes,
                  Map<float> y) const {
  const auto run = level_ == Level::bf16 || split() ? &Network::run_with<Bf16>
                   : level_ == Level::half          ? &Network::run_with<Half>
                                                    : &Network::run_with<float>;
  (this->*run)(threads, x, valid, strips_of(x.h, x.w, valid, bytes), workspace, y);
}

template <class S>
void Network::run_with(int threads, Map<const float> x, const Rect& valid, Strips strips, float* workspace,
                       Map<float> y) const {
  const Run<float> run(threads, kernels_, bf16_);
  const Index h = x.h, w = x.w, count = layers() - 5;
  const Maps<S> maps(*this, strips, h, w, valid, workspace);
  std::vector<std::atomic<bool>> overflow(layers() + 1);
  std::vector<std::function<Stage(const Rect& strip)>> stages;  // of each layer
  using Wide = typename Maps<S>::Wide;
  using All = std::vector<Weights<float>>;
  const auto at = [](const All& all, std::size_t i) { return i < all.size() ? &all[i] : nullptr; };
  const auto layer = [&](const Weights<float>* weights, const auto& in, const auto& out, bool relu,
                         const auto&... add) {
    using In = std::decay_t<decltype(*in.data)>;
    using Out = std::decay_t<decltype(*out.data)>;
    Convolution<float, In, Out> c;
    c.source = copy_of<float>(constant(in));
    c.out = out;
    c.relu = relu;
    Index added = 0;
    ((c.add[added++] = constant(add)), ...);
    const std::size_t number = stages.size() + 1;
    c.overflow = &overflow[number];
    const AmxWeights* const amx = weights ? nullptr : &amx_[number - 2];
    strips.add(grow(valid, layers() - static_cast<Index>(number), h, w));
    stages.push_back([&run, c, weights, amx](const Rect& strip) mutable {
      c.region = strip;
      if constexpr (std::is_same<Out, Bf16>::value) {
        if (amx) return amx_stage(run, *amx, c);
      }
      if constexpr (std::is_same<In, float>::value && std::is_same<Out, float>::value) {
        return convolution_stage(run, *weights, c);
      } else {
        return winograd_stage(run, *weights, c);
      }
    });
  };
  const Map<float> frames = {const_cast<float*>(x.data), x.n, x.c, h, w, x.sn, x.sc, x.sh, x.sw};
  layer(at(stem_, 0), frames, maps.middle, true);
  layer(at(stem_, 1), maps.middle, maps.l2, true);
  Map<Wide> block = maps.l2;
  for (Index i = 0; i < count; i += 2) {
    const Map<Wide>& out = maps.blocks[i / 2];
    layer(at(body_, i), block, maps.within[i / 2], true);
    if (i < count - 2) {
      layer(at(body_, i + 1), maps.within[i / 2], out, false, block);
    } else if (tail_skip_) {
      layer(at(body_, i + 1), maps.within[i / 2], out, false, block, maps.l2);
    } else {
      layer(at(body_, i + 1), maps.within[i / 2], out, false, maps.l2);
    }
    block = out;
  }
  layer(at(tail_, 0), block, maps.h1, true);
  strips.add(grow(valid, 1, h, w));
  stages.push_back([&](const Rect& strip) {
    if constexpr (std::is_same<S, Bf16>::value) {
      const std::size_t end = amx_.size();
      if (end) return amx_tail_stage(threads, constant(maps.h1), amx_[end - 2], amx_[end - 1], strip, {}, maps.taps);
    }
    return tail_stage<float, Wide>(run, constant(maps.h1), tail(), strip, {}, maps.taps);
  });
  strips.add(valid);
  stages.push_back([&](const Rect& strip) { return taps_stage<float>(constant(maps.taps), b3_, strip, y); });

  std::vector<Strips::Strip> order = strips.order();
  const bool beside = skewed_ && valid.w() == w;
  if (beside) taps_later(order);
  std::vector<Stage> next;
  for (std::size_t i = 0; i < order.size(); i++) {
    Stage stage = stages[order[i].layer](order[i].part);
    if (beside) let_begin_early(order, i, strips.skewed(), stage);
    if (stage.beside == 0) {
      run_stages(threads, next);
      next.clear();
    }
    next.push_back(std::move(stage));
  }
  run_stages(threads, next);
  for (Index i = 1; i <= layers(); i++) {
    if (!overflow[i]) continue;
    throw std::range_error("Layer " + std::to_string(i) + " of " + std::to_string(layers()) +
                           " gave values beyond 65504, more than 16 bits can hold: take precision exact or fast.");
  }
}

}  // namespace dblr
