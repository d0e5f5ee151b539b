// The step's functions of one level against the portable ones, bit for bit: a part of `check_levels.cpp`.
#pragma once
#include <cstdio>
#include <cstring>
#include <vector>

#include "step.h"

namespace gmoe {

class StepCheck {
 public:
  StepCheck(const Step& fast, uint32_t (*next)()) : fast_(fast), next_(next) {}

  // How many results differ; a line "name hash" for each function.
  int run() {
    norms();
    rotations();
    gates();
    streams();
    routing();
    for (Number number : {Number::f32, Number::f16, Number::bf16, Number::q8_0}) attention(number);
    recurrence();
    return wrong_;
  }

 private:
  std::vector<float> floats(size_t n, float scale = 2.0f) {
    std::vector<float> x(n);
    for (float& value : x) value = (float(next_() & 0xffff) - 32768.0f) / 32768.0f * scale;
    return x;
  }

  template <class T>
  void same(const std::vector<T>& a, const std::vector<T>& b, const char* what, bool count = true) {
    if (std::memcmp(a.data(), b.data(), a.size() * sizeof(T))) wrong_++, std::printf("%s differs\n", what);
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(a.data());
    for (size_t i = 0; count && i < a.size() * sizeof(T); i++) hash_ = (hash_ ^ bytes[i]) * 16777619u;
  }
  void end(const char* what) {
    std::printf("%s %08x\n", what, hash_);
    hash_ = 2166136261u;
  }

  void norms() {
    for (int n : {16, 100, 128, 2053})
      for (int parts = 0; parts < 4; parts++) {
        const std::vector<float> x = floats(n), weight = floats(n), bias = floats(n);
        std::vector<float> a(n), b(n);
        const float *w = parts & 1 ? weight.data() : nullptr, *plus = parts & 2 ? bias.data() : nullptr;
        step_portable.norm(x.data(), n, w, plus, 1e-6f, a.data());
        fast_.norm(x.data(), n, w, plus, 1e-6f, b.data());
        same(a, b, "norm");
        step_portable.centre(x.data(), n, a.data());
        fast_.centre(x.data(), n, b.data());
        same(a, b, "centre");
        step_portable.residual(x.data(), 0.7f, n, a.data());
        fast_.residual(x.data(), 0.7f, n, b.data());
        same(a, b, "residual");
      }
    end("norm");
  }

  void rotations() {
    for (int turned : {24, 64, 128})
      for (bool halves : {false, true}) {
        const std::vector<float> cos = floats(turned / 2, 1.0f), sin = floats(turned / 2, 1.0f);
        std::vector<float> a = floats(3 * 128), b = a;
        step_portable.rotate(a.data(), 3, 128, turned, halves, cos.data(), sin.data());
        fast_.rotate(b.data(), 3, 128, turned, halves, cos.data(), sin.data());
        same(a, b, "rotate");
      }
    end("rotate");
  }

  void gates() {
    for (int kind = 0; kind < 15; kind++)
      for (int n : {96, 101}) {
        const std::vector<float> gate = floats(n, 20.0f), up = floats(n, 20.0f);
        std::vector<float> a(n), b(n);
        step_portable.gate(kind, 7.0f, 5.0f, kind == 3 ? nullptr : gate.data(), up.data(), n, a.data());
        fast_.gate(kind, 7.0f, 5.0f, kind == 3 ? nullptr : gate.data(), up.data(), n, b.data());
        same(a, b, "gate");
      }
    end("gate");
  }

  void streams() {
    for (int n : {3, 4, 16})
      for (int d : {96, 101}) {
        const std::vector<float> mixes = floats((2 + n) * n, 5.0f), x = floats(size_t(n) * d), y = floats(d);
        std::vector<float> read[2], write[2], out[2];
        const Step* const steps[] = {&step_portable, &fast_};
        for (int i = 0; i < 2; i++) {
          read[i].resize(n);
          write[i].resize(size_t(n) * (n + 1));
          out[i].resize(size_t(n + 1) * d);
          steps[i]->weave(mixes.data(), n, 20, 1e-6f, read[i].data(), write[i].data());
          steps[i]->blend(x.data(), n, nullptr, read[i].data(), 1, d, out[i].data());
          steps[i]->blend(x.data(), n, y.data(), write[i].data(), n, d, out[i].data() + d);
        }
        same(read[0], read[1], "streams");
        same(write[0], write[1], "streams");
        same(out[0], out[1], "streams");
      }
    end("streams");
  }

  void routing() {
    for (Gating gating : {Gating::softmax, Gating::sigmoid, Gating::softmax_weight, Gating::sqrt_softplus})
      for (int experts : {8, 60, 128})
        for (int variant = 0; variant < 4; variant++) {
          const std::vector<float> logits = floats(experts, 8.0f), bias = floats(experts, 0.1f),
                                   each = floats(experts, 2.0f);
          const Router r = {experts, 6, variant & 1 ? 4 : 1, variant & 1 ? 2 : 1, gating,
                            variant & 2 ? bias.data() : nullptr, !(variant & 1), 1.5f,
                            variant & 2 ? each.data() : nullptr, variant == 2 ? 4 : 1};
          std::vector<int32_t> ids(6), other_ids(6);
          std::vector<float> a(6), b(6);
          const bool enough = !(variant & 1) || experts >= 12;  // in the groups that are used
          if (!enough) continue;
          step_portable.choose(r, logits.data(), ids.data(), a.data());
          fast_.choose(r, logits.data(), other_ids.data(), b.data());
          // the last kind asks the C library, which may be another on another machine
          same(ids, other_ids, "choose", gating != Gating::sqrt_softplus);
          same(a, b, "choose", gating != Gating::sqrt_softplus);
        }
    end("choose");
  }

  struct Kept {  // a cache and its memory
    std::vector<char> keys, values;
    std::vector<uint16_t> key_scales, value_scales;
    Cache cache;
    Kept(Number number, int heads, int dk, int dv, int blocks) {
      const size_t size = number == Number::f32 ? 4 : number == Number::q8_0 ? 1 : 2;
      const size_t all = size_t(blocks) * heads * cache_block;
      keys.resize(all * dk * size);
      values.resize(all * dv * size);
      key_scales.resize(all * ((dk + 31) / 32));
      value_scales.resize(all * ((dv + 31) / 32));
      const bool scaled = number == Number::q8_0;
      cache = {number, heads, dk, dv, keys.data(), values.data(), scaled ? key_scales.data() : nullptr,
               scaled ? value_scales.data() : nullptr};
    }
  };

  void attention(Number number) {
    const char* const names[] = {"attend f32", "attend f16", "attend bf16", "attend q8_0"};
    constexpr int heads = 2, context = 600, blocks = (context + cache_block - 1) / cache_block;
    struct Shape {
      int dk, dv, group, tokens;
    };
    for (const Shape& shape : {Shape{64, 64, 1, 1}, Shape{48, 40, 3, 1}, Shape{32, 64, 4, 5}}) {
      Kept one(number, heads, shape.dk, shape.dv, blocks), other(number, heads, shape.dk, shape.dv, blocks);
      for (int slot = 0; slot < context; slot++) {
        const std::vector<float> key = floats(size_t(heads) * shape.dk), value = floats(size_t(heads) * shape.dv);
        step_portable.store(one.cache, slot, key.data(), value.data());
        fast_.store(other.cache, slot, key.data(), value.data());
      }
      same(one.keys, other.keys, "keys");
      same(one.values, other.values, "values");
      same(one.key_scales, other.key_scales, "key scales");
      same(one.value_scales, other.value_scales, "value scales");
      const int n_head = heads * shape.group;
      const std::vector<float> q = floats(size_t(shape.tokens) * n_head * shape.dk, 1.0f), sinks = floats(n_head);
      std::vector<int64_t> positions(shape.tokens);
      for (int t = 0; t < shape.tokens; t++) positions[t] = context - shape.tokens + t;
      std::vector<int32_t> table(blocks);
      for (int i = 0; i < blocks; i++) table[i] = i;
      const int32_t starts[] = {0, shape.tokens};
      for (Sight sight : {Sight::causal, Sight::sliding, Sight::chunked}) {
        std::vector<float> a(size_t(shape.tokens) * n_head * shape.dv), b(a.size());
        const float* sunk = sight == Sight::chunked ? nullptr : sinks.data();
        const float cap = sight == Sight::sliding ? 2.0f : 0.0f;
        const Attention plain = {one.cache, q.data(), a.data(), size_t(shape.dv), n_head, 0.3f, sunk, sight, 90,
                                 positions.data(), cap};
        Attention fast = plain;
        fast.out = b.data();
        attend(step_portable, plain, table.data(), blocks, starts, 1, 1);
        attend(fast_, fast, table.data(), blocks, starts, 1, 2);
        same(a, b, names[int(number)]);
      }
    }
    end(names[int(number)]);
  }

  void recurrence() {
    const int32_t starts[] = {0, 1, 6, 7}, source[] = {0, -1, 2}, target[] = {0, 1, 3}, kept[] = {-1, 4, 2};
    const int32_t after[] = {0, 2, 1};
    const Paths paths = {starts, source, target, kept, after, 3};
    constexpr int tokens = 7, slots = 5, n_key = 2, n_value = 4;
    struct Size {
      int dk, dv, taps;
    };
    for (const Size& size : {Size{24, 64, 3}, Size{16, 36, 2}, Size{7, 12, 5}}) {
      const int values = n_value * size.dv, channels = 2 * n_key * size.dk + values;
      const std::vector<float> x = floats(size_t(tokens) * channels), gate = floats(x.size());
      const std::vector<float> weight = floats(size_t(size.taps + 1) * channels), bias = floats(channels);
      const std::vector<float> past = floats(size_t(slots) * size.taps * channels);
      const std::vector<float> heads = floats(size_t(tokens) * n_value, 30.0f), a(n_value, -0.3f);
      const std::vector<float> norm = floats(values), matrices = floats(size_t(slots) * n_value * size.dk * size.dv);
      std::vector<float> out[2], spaced[2], faded[2], apart[2];
      std::vector<float> kept_inputs[2], kept_matrices[2], kept_spaces[2], kept_faded[2], kept_apart[2];
      const Step* const steps[] = {&step_portable, &fast_};
      for (int i = 0; i < 2; i++) {
        kept_inputs[i] = past;
        kept_matrices[i] = kept_spaces[i] = kept_faded[i] = kept_apart[i] = matrices;
        std::vector<float> y(x.size());
        out[i].resize(size_t(tokens) * values);
        spaced[i].resize(out[i].size());
        faded[i].resize(out[i].size() / 2);
        apart[i].resize(size_t(tokens) * size.dv);
        const Convolution c = {channels, size.taps, size.taps == 3, weight.data(),
                               size.taps == 2 ? nullptr : bias.data(), x.data(),
                               size.taps == 2 ? gate.data() : nullptr, size.taps == 2 ? x.data() : nullptr,
                               size_t(channels), size_t(channels), size_t(channels), size_t(channels), y.data(),
                               kept_inputs[i].data()};
        gmoe::convolve(*steps[i], c, paths, 1 + i);
        const DeltaRule rule = {n_key, size.taps == 3, a.data(), heads.data(), norm.data(), 1e-6f,
                                size.taps == 2};
        const Delta d = {{n_value, size.dk, size.dv, tokens, out[i].data(), kept_matrices[i].data(), nullptr}, rule,
                         y.data(), heads.data(), heads.data() + 1, gate.data(), size_t(channels), n_value, n_value - 1,
                         size_t(values)};
        gmoe::learn(*steps[i], d, paths, 1 + i);
        const KimiRule third = {a.data(), bias.data(), norm.data(), 1e-6f, 1e-5f, size.taps == 2 ? -5.0f : 0.0f};
        const float* const row = y.data();
        const size_t wide = size_t(channels);
        const Kimi k = {{n_key, size.dk, size.dv, tokens, faded[i].data(), kept_faded[i].data(), nullptr}, third,
                        row, row + n_key * size.dk, row + 2 * n_key * size.dk, gate.data(), heads.data(), x.data(),
                        wide, wide, wide, wide, n_value, wide};
        gmoe::learn(*steps[i], k, paths, 1 + i);
        const SpaceRule other = {n_key, a.data(), heads.data(), bias.data(), norm.data(), 1e-6f};
        const Space s = {{n_value, size.dk, size.dv, tokens, spaced[i].data(), kept_spaces[i].data(), nullptr}, other,
                         y.data(), heads.data(), gate.data(), size_t(channels), n_value, size_t(values)};
        gmoe::learn(*steps[i], s, paths, 1 + i);
        const Channels each = {size.dv, size.dk, matrices.data(), bias.data(), row, x.data(), row + size.dv, row + 1,
                               gate.data(), wide, wide, wide, wide, wide, apart[i].data(), kept_apart[i].data()};
        gmoe::learn(*steps[i], each, paths, 1 + i);
      }
      same(kept_inputs[0], kept_inputs[1], "inputs of a convolution");
      same(kept_matrices[0], kept_matrices[1], "matrices of the delta rule");
      same(out[0], out[1], "delta rule");
      same(kept_faded[0], kept_faded[1], "matrices of Kimi's delta attention");
      same(faded[0], faded[1], "Kimi's delta attention");
      same(kept_spaces[0], kept_spaces[1], "matrices of state spaces");
      same(spaced[0], spaced[1], "state spaces");
      same(kept_apart[0], kept_apart[1], "states of channels");
      same(apart[0], apart[1], "state spaces by channel");
    }
    end("recurrence");
  }

  const Step& fast_;
  uint32_t (*next_)();
  uint32_t hash_ = 2166136261u;
  int wrong_ = 0;
};

}  // namespace gmoe
