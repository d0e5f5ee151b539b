// Attention over the paged cache, a block of 32 keys at a time. What a query does with a block is the same in one order
// of operations whoever else looks at the block: chains over dk for scores, over keys for values.

template <Number N>
inline Lanes widened(const char* from, size_t i) {
  if (N == Number::f32) return lanes(reinterpret_cast<const float*>(from) + i);
  if (N == Number::f16) return halves(reinterpret_cast<const uint16_t*>(from) + i);
  if (N == Number::bf16) return bfloats(reinterpret_cast<const uint16_t*>(from) + i);
  return bytes(reinterpret_cast<const int8_t*>(from) + i);
}

template <Number N>
inline void widen(const char* from, size_t at, int n, float* to) {
  constexpr size_t size = N == Number::f32 ? 4 : N == Number::q8_0 ? 1 : 2;
  int i = 0;
  for (; i + 16 <= n; i += 16) put(to + i, widened<N>(from, at + i));
  if (i == n) return;
  char rest[64] = {};
  std::memcpy(rest, from + (at + i) * size, (n - i) * size);
  put(to + i, widened<N>(rest, 0));
}

inline void widen(Number number, const char* from, size_t at, int n, float* to) {
  switch (number) {
    case Number::f32: return widen<Number::f32>(from, at, n, to);
    case Number::f16: return widen<Number::f16>(from, at, n, to);
    case Number::bf16: return widen<Number::bf16>(from, at, n, to);
    case Number::q8_0: return widen<Number::q8_0>(from, at, n, to);
  }
}

// Keys of a block and head as floats [dk][32].
inline void widen_keys(const Cache& c, size_t head, float* to) {
  widen(c.number, c.keys, head * c.dk * cache_block, c.dk * cache_block, to);
  if (c.number != Number::q8_0) return;
  const uint16_t* scales = c.key_scales + head * ((c.dk + 31) / 32) * cache_block;
  for (int d = 0; d < c.dk; d++)
    for (int j = 0; j < cache_block; j += 16) {
      float* p = to + d * cache_block + j;
      put(p, lanes(p) * halves(scales + d / 32 * cache_block + j));
    }
}

// Values [32][width], zeros after dv.
inline void widen_values(const Cache& c, size_t head, int width, float* to) {
  const int groups = (c.dv + 31) / 32;
  if (width == c.dv && c.number != Number::q8_0) {  // rows without padding are one run
    widen(c.number, c.values, head * cache_block * c.dv, cache_block * c.dv, to);
    return;
  }
  for (int j = 0; j < cache_block; j++, to += width) {
    widen(c.number, c.values, (head * cache_block + j) * c.dv, c.dv, to);
    if (c.number != Number::q8_0) continue;
    for (int i = 0; i < width; i += 16) {
      uint16_t scale[16];
      for (int k = 0; k < 16; k++) scale[k] = c.value_scales[(head * cache_block + j) * groups + i / 32];
      put(to + i, lanes(to + i) * halves(scale));
    }
  }
}

// Where keys or values are read: floats that were widened before, or as they are stored. Of `next`, the same of the
// next block, a line is asked for as one is read: many at once would be in the way. It goes to the second level: two
// blocks of keys and of values are all that the first one holds.
struct Floats {
  const float* p;
  Lanes operator()(size_t i) const { return lanes(p + i); }
};
struct Halves {
  const char *p, *next;
  Lanes operator()(size_t i) const {
    __builtin_prefetch(next + 2 * i, 0, 2);
    return widened<Number::f16>(p, i);
  }
};
struct KeyBytes {
  const char *p, *next;
  const uint16_t* scales;  // [ceil(dk / 32)][32]
  Lanes operator()(size_t i) const {
    __builtin_prefetch(next + i, 0, 2);
    return widened<Number::q8_0>(p, i) * halves(scales + i / (32 * cache_block) * cache_block + i % cache_block);
  }
};
struct ValueBytes {
  const char *p, *next;
  const float* scales;  // [32][dv / 32]
  Lanes operator()(size_t i) const {
    __builtin_prefetch(next + i, 0, 2);
    return widened<Number::q8_0>(p, i) * all(scales[i / 32]);
  }
};

// Scores of R queries with the 32 keys [dk][32].
template <int R, class Keys>
inline void dots(const Keys& keys, int dk, const float* q, float* scores) {
  Lanes low[R], high[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) low[r] = high[r] = all(0.0f);
#pragma GCC unroll 1
  for (int d = 0; d < dk; d++) {
    Lanes a = keys(d * cache_block), b = keys(d * cache_block + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      Lanes x = all(q[r * dk + d]);
      low[r] = fma(x, a, low[r]);
      high[r] = fma(x, b, high[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    put(scores + r * cache_block, low[r]);
    put(scores + r * cache_block + 16, high[r]);
  }
}

// Scores of any number of queries, R at once and then as many as there are.
template <int R, class Keys>
inline void score(const Keys& keys, int dk, const float* q, int queries, float* scores) {
  for (; queries >= R; queries -= R, q += size_t(R) * dk, scores += R * cache_block) dots<R>(keys, dk, q, scores);
  if constexpr (R > 1)
    if (queries) score<R - 1>(keys, dk, q, queries, scores);
}

// Scores of one query become shares of its new largest one; returns what earlier results shrink by.
inline float weigh(float* scores, int begin, int end, float& m, float& l) {
  const bool part = begin > 0 || end < cache_block;
  if (part) {
    for (int j = 0; j < begin; j++) scores[j] = -INFINITY;
    for (int j = end; j < cache_block; j++) scores[j] = -INFINITY;
  }
  float most = largest(larger(lanes(scores), lanes(scores + 16)));
  float top = most > m ? most : m;
  float shrink = top == m ? 1.0f : exponential(m - top);
  Lanes low = exponential(lanes(scores) - all(top)), high = exponential(lanes(scores + 16) - all(top));
  put(scores, low);
  put(scores + 16, high);
  if (part) {
    for (int j = 0; j < begin; j++) scores[j] = 0.0f;
    for (int j = end; j < cache_block; j++) scores[j] = 0.0f;
    low = lanes(scores);
    high = lanes(scores + 16);
  }
  l = __builtin_fmaf(l, shrink, sum(low + high));
  m = top;
  return shrink;
}

template <int R, int C, class Values>
inline void mix(const Values& values, int column, int width, const float* shares, const float* shrink, int begin,
                int end, float* o) {
  Lanes acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) acc[r][c] = lanes(o + size_t(r) * width + column + 16 * c) * all(shrink[r]);
  for (int j = begin; j < end; j++) {
    Lanes v[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) v[c] = values(size_t(j) * width + column + 16 * c);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      Lanes share = all(shares[r * cache_block + j]);
#pragma GCC unroll 16
      for (int c = 0; c < C; c++) acc[r][c] = fma(share, v[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) put(o + size_t(r) * width + column + 16 * c, acc[r][c]);
}

// Values [32][width] of keys [begin, end) by their shares, added to R queries' sums from column `column`: the fewer
// queries, the more columns at once, so that there are as many sums as registers hold.
template <int R, int C, class Values>
inline void mix_row(const Values& values, int column, int width, const float* shares, const float* shrink, int begin,
                    int end, float* o) {
  for (; column + 16 * C <= width; column += 16 * C)
    mix<R, C>(values, column, width, shares, shrink, begin, end, o);
  if constexpr (C > 1)
    if (column < width) mix_row<R, C / 2>(values, column, width, shares, shrink, begin, end, o);
}

constexpr int columns_of(int queries) {
  int columns = columns_at_once;
  while (columns < 8 && 2 * columns * queries <= columns_at_once * rows_at_once) columns *= 2;
  return columns;
}

// The same of queries that see the same keys, R at once and then as many as there are.
template <int R, class Values>
inline void mix_rows(const Values& values, int width, const float* shares, const float* shrink, int begin, int end,
                     int queries, float* o) {
  for (; queries >= R; queries -= R, shares += R * cache_block, shrink += R, o += size_t(R) * width)
    mix_row<R, columns_of(R)>(values, 0, width, shares, shrink, begin, end, o);
  if constexpr (R > 1)
    if (queries) mix_rows<R - 1>(values, width, shares, shrink, begin, end, queries, o);
}

// What queries [0, queries) add, of which `seen` has the keys that they see: 64 * begin + end.
template <class Values>
inline void gather(const Values& values, int width, const float* shares, const float* shrink, const int* seen,
                   int queries, float* o) {
  for (int i = 0; i < queries;) {
    int same = 1;
    while (i + same < queries && seen[i + same] == seen[i]) same++;
    const int begin = seen[i] / 64, end = seen[i] % 64;
    const float* from = shares + i * cache_block;
    mix_rows<rows_at_once>(values, width, from, shrink + i, begin, end, same, o + size_t(i) * width);
    i += same;
  }
}

void attend_chunk(const Attention& a, const int32_t* blocks, int head, int first, int count, int64_t chunk, Partial to,
                  float* scratch) {
  const Cache& cache = a.cache;
  const int group = a.group(), dk = cache.dk, width = a.width(), queries = count * group;
  float* keys = scratch;
  float* values = keys + size_t(dk) * cache_block;
  float* q = values + size_t(cache_block) * width;
  float* scores = q + size_t(queries) * dk;
  float* shrink = scores + size_t(queries) * cache_block;
  int* seen = reinterpret_cast<int*>(shrink + queries);
  // So few queries read what is stored as it lies: to widen it first, for all of them, would take as long.
  const bool halves_lie = cache.number == Number::f16 && width == cache.dv;
  const bool bytes_lie = cache.number == Number::q8_0 && cache.dv % 32 == 0;
  const bool few = queries <= 2 * rows_at_once && (halves_lie || bytes_lie);
  for (int t = 0; t < count; t++)
    for (int g = 0; g < group; g++) {
      const float* from = a.q + (size_t(first + t) * a.n_head + size_t(head) * group + g) * dk;
      for (int d = 0; d < dk; d++) q[size_t(t * group + g) * dk + d] = from[d] * a.scale;
    }
  for (int i = 0; i < queries; i++) {
    to.m[i] = -INFINITY;
    to.l[i] = 0.0f;
  }
  std::memset(to.o, 0, sizeof(float) * queries * width);
  auto place_of = [&](int64_t key) { return size_t(blocks[key / cache_block]) * cache.heads + head / a.split; };
  const int64_t last = a.positions[first + count - 1];
  int64_t key = chunk * key_chunk, stop = key + key_chunk < last + 1 ? key + key_chunk : last + 1;
  for (; key < stop; key += cache_block) {
    int from = 0, until = count;  // the tokens that see some of this block
    while (from < count && a.positions[first + from] < key) from++;
    while (until > from && a.first_key(first + until - 1) >= key + cache_block) until--;
    while (from < until && a.first_key(first + from) >= key + cache_block) from++;
    if (from == until) continue;
    const size_t place = place_of(key);
    const int begin = from * group, count_here = (until - from) * group;
    float* shares = scores + begin * cache_block;
    const float* asked = q + size_t(begin) * dk;
    const size_t next = key + cache_block < stop ? place_of(key + cache_block) : place;
    auto meet = [&](const auto& keys_here, const auto& values_here) {
      score<rows_at_once>(keys_here(), dk, asked, count_here, shares);
      if (a.cap > 0.0f) gate_row(7, 0.0f, 0.0f, &a.cap, shares, count_here * cache_block, shares);
      for (int i = begin; i < begin + count_here; i++) {
        int token = first + i / group;
        int64_t low = a.first_key(token) - key, high = a.positions[token] - key + 1;
        const int lowest = low > 0 ? int(low) : 0, end = high < cache_block ? int(high) : cache_block;
        shrink[i] = weigh(scores + i * cache_block, lowest, end, to.m[i], to.l[i]);
        seen[i] = lowest * 64 + end;
      }
      gather(values_here(), width, shares, shrink + begin, seen + begin, count_here, to.o + size_t(begin) * width);
    };
    if (!few) {
      meet(
          [&] {
            widen_keys(cache, place, keys);
            return Floats{keys};
          },
          [&] {
            widen_values(cache, place, width, values);
            return Floats{values};
          });
    } else if (halves_lie) {
      const size_t key_bytes = size_t(dk) * cache_block * 2, value_bytes = size_t(cache.dv) * cache_block * 2;
      meet([&] { return Halves{cache.keys + place * key_bytes, cache.keys + next * key_bytes}; },
           [&] { return Halves{cache.values + place * value_bytes, cache.values + next * value_bytes}; });
    } else {
      const size_t key_bytes = size_t(dk) * cache_block, value_bytes = size_t(cache.dv) * cache_block;
      const int key_count = (dk + 31) / 32 * cache_block, value_count = cache.dv / 32 * cache_block;  // of scales
      for (int i = 0; i < key_count; i += 32) __builtin_prefetch(cache.key_scales + next * key_count + i, 0, 2);
      for (int i = 0; i < value_count; i += 32) __builtin_prefetch(cache.value_scales + next * value_count + i, 0, 2);
      for (int i = 0; i < value_count; i += 16) put(values + i, halves(cache.value_scales + place * value_count + i));
      meet(
          [&] {
            const uint16_t* scales = cache.key_scales + place * key_count;
            return KeyBytes{cache.keys + place * key_bytes, cache.keys + next * key_bytes, scales};
          },
          [&] { return ValueBytes{cache.values + place * value_bytes, cache.values + next * value_bytes, values}; });
    }
  }
}

void merge_partials(Partial to, Partial next, int queries, int width) {
  for (int i = 0; i < queries; i++) {
    if (next.l[i] == 0.0f) continue;
    float* o = to.o + size_t(i) * width;
    const float* more = next.o + size_t(i) * width;
    if (to.l[i] == 0.0f) {
      std::memcpy(o, more, sizeof(float) * width);
      to.m[i] = next.m[i];
      to.l[i] = next.l[i];
      continue;
    }
    float top = to.m[i] > next.m[i] ? to.m[i] : next.m[i];
    float mine = exponential(to.m[i] - top), others = exponential(next.m[i] - top);
    to.l[i] = __builtin_fmaf(to.l[i], mine, next.l[i] * others);
    to.m[i] = top;
    for (int j = 0; j < width; j += 16) put(o + j, fma(lanes(o + j), all(mine), lanes(more + j) * all(others)));
  }
}

void finish_partial(const Attention& a, int head, int first, int count, Partial from) {
  const int group = a.group(), dv = a.cache.dv, width = a.width();
  for (int i = 0; i < count * group; i++) {
    int h = head * group + i % group;
    float over = from.l[i], shrink = 1.0f;
    if (a.sinks) {
      float top = from.m[i] > a.sinks[h] ? from.m[i] : a.sinks[h];
      shrink = exponential(from.m[i] - top);
      over = __builtin_fmaf(over, shrink, exponential(a.sinks[h] - top));
    }
    float* out = a.out + (size_t(first + i / group) * a.n_head + h) * a.out_row;
    const float* o = from.o + size_t(i) * width;
    for (int d = 0; d < dv; d += 16) {
      int m = dv - d < 16 ? dv - d : 16;
      put(out + d, lanes(o + d) * all(shrink) / all(over), m);
    }
  }
}
