// Sixteen candidates at a time: a lane is a candidate, and a loop over the elements sums what each would cost.
#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "pool.h"

#define INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif

namespace gmoe {
namespace {

constexpr int kLanes = 16, kMaxGroups = 16, kMaxBlock = 256, kRounds = 2;
constexpr float kTiny = 1e-30f;  // smaller blocks are zero
constexpr float kInfinity = std::numeric_limits<float>::infinity();
typedef float Lanes __attribute__((vector_size(4 * kLanes)));

INLINE Lanes all(float v) { return Lanes{} + v; }
INLINE Lanes ramp() { return Lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
INLINE Lanes between(Lanes v, Lanes low, Lanes high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}
INLINE Lanes whole(Lanes v) {  // the nearest whole number; of what is too large for that, something as large
  Lanes magic = all(12582912.0f);
  return (v + magic) - magic;
}
INLINE Lanes inverse(Lanes v) { return v != 0 ? 1 / v : all(0); }
INLINE float inverse(float v) { return v != 0 ? 1 / v : 0; }

struct Even {  // points low, low + 1, .. high
  const float low, high;
  explicit Even(const Scheme& s) : low(s.points.front()), high(s.points.back()) {}
  INLINE Lanes operator()(Lanes v) const { return between(whole(v), all(low), all(high)); }
  INLINE int index(float v) const {
    v = (v + 12582912.0f) - 12582912.0f;
    return int(std::min(std::max(v, low), high) - low);
  }
  INLINE float value(int index) const { return low + float(index); }
};

struct Uneven {  // any ascending points
  const float* points;
  const int count;
  explicit Uneven(const Scheme& s) : points(s.points.data()), count(int(s.points.size())) {}
  INLINE Lanes operator()(Lanes v) const {
    Lanes found = all(points[0]);
    for (int i = 1; i < count; i++) found = v > all(0.5f * (points[i - 1] + points[i])) ? all(points[i]) : found;
    return found;
  }
  INLINE int index(float v) const {
    int i = 1;
    while (i < count && v > 0.5f * (points[i - 1] + points[i])) i++;
    return i - 1;
  }
  INLINE float value(int index) const { return points[index]; }
};

float as_half(float v) {  // to the nearest IEEE half, ties to even, at most the largest
  v = std::min(std::max(v, -65504.0f), 65504.0f);
  int exponent;
  std::frexp(v, &exponent);
  float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
  return std::nearbyint(v / unit) * unit;
}

struct Best {  // the candidate of the lowest cost
  Lanes cost = all(kInfinity), a = {}, b = {};
  INLINE void offer(Lanes costs, Lanes as, Lanes bs) {
    auto better = costs < cost;
    cost = better ? costs : cost;
    a = better ? as : a;
    b = better ? bs : b;
  }
  INLINE int lane() const {
    int best = 0;
    for (int l = 1; l < kLanes; l++)
      if (cost[l] < cost[best]) best = l;
    return best;
  }
};

struct Elements {  // those that share a scale
  const float *x, *w;
  int n;
};

struct Line {  // value = d * point + m
  float d, m;
};

// A scale alone: 1/d near what makes the largest element an outermost point, then near the best of those.
template <class Points>
INLINE float fit_scale(const Points& point, const Scheme& s, Elements e) {
  float largest = 0;
  for (int i = 0; i < e.n; i++) largest = std::max(largest, std::fabs(e.x[i]));
  if (largest < kTiny) return 0;
  const float low = s.points.front(), high = s.points.back(), outer = std::max(-low, high);
  const float unit = (high - low) / float(s.points.size() - 1);
  const float from = std::max(0.5f * outer, outer - 2.2f * unit), step = (outer + 0.7f * unit - from) / 31;
  const int signs = low != -high ? 2 : 1;
  Best best;
  for (int turn = 0; turn <= 2 * signs; turn++) {
    Lanes inverse_d = (from + (ramp() + float(16 * (turn / signs))) * step) / largest;
    if (turn % signs) inverse_d = -inverse_d;
    if (turn == 2 * signs) inverse_d = best.b[best.lane()] * (1 + (ramp() - 7.5f) * (0.012f * unit / outer));
    Lanes xp = {}, pp = {};
    for (int i = 0; i < e.n; i++) {
      Lanes p = point(e.x[i] * inverse_d), wp = e.w[i] * p;
      xp += e.x[i] * wp;
      pp += wp * p;
    }
    Lanes d = xp * inverse(pp);
    best.offer(-xp * d, d, inverse_d);
  }
  return best.a[best.lane()];
}

// A scale and a minimum: spans a little larger and smaller than the elements', held at either end or in the middle.
template <class Points>
INLINE Line fit_line(const Points& point, const Scheme& s, Elements e) {
  float low = e.x[0], high = e.x[0], w = 0, wx = 0, wxx = 0;
  for (int i = 0; i < e.n; i++) {
    low = std::min(low, e.x[i]);
    high = std::max(high, e.x[i]);
    w += e.w[i];
    wx += e.w[i] * e.x[i];
    wxx += e.w[i] * e.x[i] * e.x[i];
  }
  if (s.below_zero) low = std::min(low, 0.0f);
  const float span = high - low, last = s.points.back();
  if (span < kTiny || w <= 0) return {0, low};
  const float least = last - std::min(1.0f, 0.3f * last), most = last + std::min(1.6f, 0.45f * last);
  const Lanes spans = (least + ramp() * ((most - least) / 15)) / span;
  Best best;
  for (int turn = 0; turn < 5; turn++) {
    Lanes rate = spans, from = all(low);
    if (turn == 1) from = 0.5f * (low + high - last / spans);
    if (turn == 2) from = high - last / spans;
    if (turn > 2) {
      const float reach = turn == 3 ? 0.2f : 0.08f;
      int l = best.lane();
      float d = best.a[l], m = best.b[l];
      if (d <= 0) break;
      Lanes column = whole((ramp() - 1.5f) * 0.25f), row = ramp() - 4 * column;
      rate = inverse(d * (1 + (row - 1.5f) * (reach / last)));
      from = m + (column - 1.5f) * (reach * d);
    }
    if (s.below_zero) from = from > 0 ? all(0) : from;
    Lanes wp = {}, wpp = {}, wxp = {};
    for (int i = 0; i < e.n; i++) {
      Lanes p = point((e.x[i] - from) * rate), weighted = e.w[i] * p;
      wp += weighted;
      wpp += weighted * p;
      wxp += weighted * e.x[i];
    }
    Lanes det = w * wpp - wp * wp;
    Lanes d = (w * wxp - wx * wp) * inverse(det);
    Lanes m = (wx - d * wp) / w;
    if (s.below_zero) {
      auto above = m > 0;
      m = above ? all(0) : m;
      d = above ? wxp * inverse(wpp) : d;
    }
    Lanes cost = wxx - 2 * (d * wxp + m * wx) + d * (d * wpp + 2 * m * wp) + m * m * w;
    best.offer(d < 0 ? all(kInfinity) : cost, d, m);
  }
  int l = best.lane();
  return {best.a[l], best.b[l]};
}

// The best power of two, as its exponent.
template <class Points>
INLINE int fit_power(const Points& point, const Scheme& s, Elements e) {
  float largest = 0;
  for (int i = 0; i < e.n; i++) largest = std::max(largest, std::fabs(e.x[i]));
  if (largest < kTiny) return -126;
  int first = std::ilogb(largest / s.points.back()) - 4;
  Lanes d, cost = {}, exponent = ramp() + float(first);
  for (int l = 0; l < kLanes; l++) d[l] = std::ldexp(1.0f, std::min(std::max(first + l, -126), 126));
  for (int i = 0; i < e.n; i++) {
    Lanes error = e.x[i] - d * point(e.x[i] / d);
    cost += e.w[i] * error * error;
  }
  Best best;
  best.offer(cost, exponent, d);
  return std::min(std::max(int(best.a[best.lane()]), -126), 126);
}

struct Groups {  // a block's whole scales and minima
  float d = 0, dmin = 0, cost = kInfinity;
  int scale[kMaxGroups] = {}, min[kMaxGroups] = {};
};

INLINE float bounded(float v, float low, float high) { return std::min(std::max(std::nearbyint(v), low), high); }

// The whole scale (and minimum) of a group under given d, dmin: the cheapest of sixteen neighbours.
template <class Points>
INLINE float settle(const Points& point, const Scheme& s, Elements e, const Line& wanted, float d, float dmin,
                    int& scale, int& min) {
  const float low = float(s.scale_low), high = float(s.scale_high), most = float(s.min_high);
  Lanes ls, lm = {};
  float center = bounded(wanted.d * inverse(d), low, high);
  if (s.minimum) {
    Lanes column = whole((ramp() - 2) * 0.2f);  // five minima to each of three scales, and one more
    ls = between(center + column - 1, all(low), all(high));
    float w = 0, wx = 0, wp = 0;  // a smaller scale wants a smaller minimum: the mean must stay
    for (int i = 0; i < e.n; i++) {
      w += e.w[i];
      wx += e.w[i] * e.x[i];
    }
    wp = (wx - wanted.m * w) * inverse(wanted.d);
    Lanes mean = (ls * (d * wp) - wx) * inverse(w * dmin);
    lm = between(whole(mean) + (ramp() - 5 * column - 2), all(0), all(most));
  } else {
    ls = between(center + ramp() - 7, all(low), all(high));
  }
  Lanes step = d * ls, lift = dmin * lm, rate = inverse(step), cost = {};
  for (int i = 0; i < e.n; i++) {
    Lanes error = e.x[i] + lift - step * point((e.x[i] + lift) * rate);
    cost += e.w[i] * error * error;
  }
  Best best;
  best.offer(cost, ls, lm);
  int l = best.lane();
  scale = int(best.a[l]);
  min = int(best.b[l]);
  return best.cost[l];
}

template <class Points>
INLINE void codes_of(const Points& point, Elements e, float step, float lift, uint8_t* codes) {
  float rate = inverse(step);
  for (int i = 0; i < e.n; i++) codes[i] = uint8_t(point.index((e.x[i] + lift) * rate));
}

// d and dmin of a block that fit given whole scales, minima and codes best.
template <class Points>
INLINE void refit(const Points& point, const Scheme& s, Elements e, const Groups& g, const uint8_t* codes, float& d,
                  float& dmin) {
  float aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (int i = 0; i < e.n; i++) {
    int j = i / s.group;
    float a = float(g.scale[j]) * point.value(codes[i]), b = -float(g.min[j]), wa = e.w[i] * a, wb = e.w[i] * b;
    aa += wa * a;
    ab += wa * b;
    bb += wb * b;
    xa += wa * e.x[i];
    xb += wb * e.x[i];
  }
  float det = aa * bb - ab * ab;
  if (s.minimum && det > 1e-6f * aa * bb && (xb * aa - xa * ab) > 0 && (xa * bb - xb * ab) > 0) {
    d = as_half((xa * bb - xb * ab) / det);
    dmin = as_half((xb * aa - xa * ab) / det);
  } else if (aa > 0 && !s.minimum) {
    d = as_half(xa / aa);
  }
}

template <class Points>
INLINE void fit_groups(const Points& point, const Scheme& s, Elements e, const Line* wanted, Groups& best,
                       uint8_t* codes) {
  const int groups = s.block / s.group;
  float d = 0, dmin = 0;
  for (int j = 0; j < groups; j++) {
    if (std::fabs(wanted[j].d) > std::fabs(d)) d = wanted[j].d;
    dmin = std::max(dmin, -wanted[j].m);
  }
  const float outer = s.scale_low < 0 ? float(s.scale_low) : float(s.scale_high), d0 = d, dmin0 = dmin;
  for (int start = 0; start < (s.scale_high < 16 ? 3 : 1); start++) {  // coarse scales: other spans pay, too
    d = as_half(d0 / (outer - float(start) * 0.7f));
    dmin = s.minimum ? as_half(dmin0 / (float(s.min_high) - float(start) * 0.7f)) : 0;
    for (int round = 0; round < kRounds; round++) {
      Groups now;
      now.d = d;
      now.dmin = dmin;
      now.cost = 0;
      uint8_t tried[kMaxBlock];
      for (int j = 0; j < groups; j++) {
        Elements part = {e.x + j * s.group, e.w + j * s.group, s.group};
        now.cost += settle(point, s, part, wanted[j], d, dmin, now.scale[j], now.min[j]);
        codes_of(point, part, d * float(now.scale[j]), dmin * float(now.min[j]), tried + j * s.group);
      }
      if (now.cost < best.cost) {
        best = now;
        std::memcpy(codes, tried, s.block);
      }
      refit(point, s, e, now, tried, d, dmin);
      if (d == now.d && dmin == now.dmin) break;
    }
  }
}

template <class Points>
INLINE void encode(const Points& point, const Scheme& s, Elements e, int64_t block, const Encoded& out) {
  const int groups = s.block / s.group;
  uint8_t* codes = out.codes + block * s.block;
  Line wanted[kMaxGroups] = {};
  for (int j = 0; j < groups && !s.power; j++) {
    Elements part = {e.x + j * s.group, e.w + j * s.group, s.group};
    wanted[j] = s.minimum ? fit_line(point, s, part) : Line{fit_scale(point, s, part), 0};
  }
  if (s.scale_high) {
    Groups g;
    fit_groups(point, s, e, wanted, g, codes);
    out.d[block] = g.d;
    out.dmin[block] = g.dmin;
    for (int j = 0; j < groups; j++) {
      out.scales[block * groups + j] = int16_t(g.scale[j]);
      out.mins[block * groups + j] = int16_t(g.min[j]);
    }
    return;
  }
  Line line = {as_half(wanted[0].d), as_half(wanted[0].m)};
  if (s.power) {
    int exponent = fit_power(point, s, e);
    line.d = std::ldexp(1.0f, exponent);
    out.d[block] = float(exponent + 128);
  } else {
    out.d[block] = line.d;
  }
  out.dmin[block] = -line.m;
  codes_of(point, e, line.d, -line.m, codes);
}

FOR_EVERY_CPU void encode_even(const Scheme& s, Elements e, int64_t block, const Encoded& out) {
  encode(Even(s), s, e, block, out);
}

FOR_EVERY_CPU void encode_uneven(const Scheme& s, Elements e, int64_t block, const Encoded& out) {
  encode(Uneven(s), s, e, block, out);
}

}  // namespace

void quantize(const Scheme& s, const float* x, int64_t blocks, const float* weight, int cols, const Encoded& out,
              int threads) {
  bool even = true;
  for (size_t i = 1; i < s.points.size(); i++) even = even && s.points[i] == s.points[i - 1] + 1;
  const std::vector<float> ones(s.block, 1.0f);
  const int64_t chunk = 64;
  parallel(int((blocks + chunk - 1) / chunk), threads, [&](int task) {
    for (int64_t b = task * chunk; b < std::min(blocks, (task + 1) * chunk); b++) {
      Elements e = {x + b * s.block, weight ? weight + b * s.block % cols : ones.data(), s.block};
      even ? encode_even(s, e, b, out) : encode_uneven(s, e, b, out);
    }
  });
}

}  // namespace gmoe
