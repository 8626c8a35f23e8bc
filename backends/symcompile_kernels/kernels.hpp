/* Sums of products, means and outer products of large arrays of few channels, in float32, each in
   one go over memory. PyTorch's own take an op, and a pass over memory, for every product, every
   term and every mean.

   Arrays have any number of axes of rows and a last one of channels, which lie side by side. Steps
   count floats, not bytes, and are 0 along axes an array is broadcast over. Every function returns
   0, or 1 if it ran out of memory; all integers are of 64 bits. C++17, and the vectors of GCC and
   Clang.

   Threads are those of who includes this: a Pool has `threads`, their number, and
   `run(count, work)`, which calls work(item, thread) once for every item from 0 to count - 1, on
   threads 0 to threads - 1. Items are much alike. */

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

/* TALL, WIDE: rows of a tile of one and of two vectors, as many as the registers hold. */
#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16, TALL = 12, WIDE = 8;
#elif defined(__AVX2__)
#include <immintrin.h>
constexpr int LANES = 8, TALL = 12, WIDE = 6;
#else
constexpr int LANES = 4, TALL = 12, WIDE = 8;
#endif

constexpr int FEW = 4;    // rows of a tile where more do not fit
constexpr int DEEP = 16;  // rows of a tile of an outer product, of one vector; half of two
constexpr int MOST = 8;   // axes, products and terms of a sum
constexpr int PART = 256; // rows that a thread takes at once, and that float32 adds up in order
constexpr int FETCHED = 256; // floats between what is fetched and what is added up
constexpr int CACHED = 1 << 13; // floats of the first cache that are worked on at a time
constexpr int ACROSS = 8; // places that are computed at once where rows lie across
constexpr int AHEAD = 4;  // tiles between what is fetched and what is computed

#define INLINE static inline __attribute__((always_inline))
#define HERE __attribute__((always_inline))

typedef int64_t i64;
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* Calls f(0), f(1), ... f(N - 1) with constants, so that arrays they index stay in registers. */
template <typename F, int... I>
INLINE void call(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, typename F>
INLINE void each(F f) {
  call(f, std::make_integer_sequence<int, N>{});
}

/* The first n lanes; the others are 0, and their memory is not touched. */
INLINE vec load(const float *from, i64 n = LANES) {
  if (n >= LANES) return *(const loose *)from;
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#elif defined(__AVX2__)
  alignas(32) static const int used[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return (vec)_mm256_maskload_ps(from, _mm256_loadu_si256((const __m256i *)(used + LANES - n)));
#else
  vec some = {};
  for (int lane = 0; lane < n; lane++) some[lane] = from[lane];
  return some;
#endif
}

INLINE void store(float *to, vec value, i64 n = LANES) {
  if (n >= LANES) {
    *(loose *)to = value;
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)value);
#elif defined(__AVX2__)
  /* By halves: not every processor is quick to store by a mask of AVX2. */
  __m128 half = _mm256_castps256_ps128((__m256)value);
  if (n & 4) {
    _mm_storeu_ps(to, half);
    half = _mm256_extractf128_ps((__m256)value, 1), to += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64 *)to, half);
    half = _mm_movehl_ps(half, half), to += 2;
  }
  if (n & 1) _mm_store_ss(to, half);
#else
  for (int lane = 0; lane < n; lane++) to[lane] = value[lane];
#endif
}

/* Past the caches: what is overwritten whole need not be read first. */
INLINE void stream(float *to, vec value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)value);
#else
  *(loose *)to = value;
#endif
}

INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

/* Of a square of vectors, rows become columns. */
INLINE void turn(vec (&v)[LANES]) {
  each<LANES == 16 ? 4 : LANES == 8 ? 3 : 2>([&](auto power) HERE {
    constexpr int s = 1 << power;
    each<LANES>([&](auto i) HERE {
      if constexpr ((i & s) == 0) {
        typedef int ints __attribute__((vector_size(LANES * 4)));
        ints low, high;
        for (int lane = 0; lane < LANES; lane++) {
          low[lane] = lane & s ? LANES + lane - s : lane;
          high[lane] = lane & s ? LANES + lane : lane + s;
        }
        const vec a = v[i], b = v[i + s];
        v[i] = __builtin_shuffle(a, b, low), v[i + s] = __builtin_shuffle(a, b, high);
      }
    });
  });
}

INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
constexpr i64 parts_of(i64 whole, i64 part) { return (whole + part - 1) / part; }
INLINE i64 padded_to_tiles(i64 width) { return parts_of(width, 2 * LANES) * 2 * LANES; }

/* Zeros, to be freed; null where there is no memory. */
template <typename T>
static T *zeros(i64 count) {
  return (T *)calloc((size_t)count + 1, sizeof(T));
}

/* -- sums of products ------------------------------------------------------------------------ */

/* Where rows lie across, with places along the axis before them between: the step to the next place;
   else 0. */
INLINE i64 step_across(i64 axes, const i64 *step) {
  return axes > 1 && step[axes - 1] > step[axes - 2] ? step[axes - 2] : 0;
}

struct Sum {
  i64 axes, products, terms;
  bool streams;
  i64 width, padded, shape[MOST];
  i64 depth[MOST], x_step[MOST][MOST], term_step[MOST][MOST];
  i64 lines[MOST]; // in which the channels of x lie, and where they begin
  const i64 *line[MOST];
  const float *x[MOST], *weight[MOST], *term[MOST];
  float *y;
};

/* Where a tile begins. */
struct Place {
  const float *x[MOST], *term[MOST];
  i64 step[MOST]; // of x, from row to row
  float *y;
};

/* R rows and J vectors of y, from channel `at`; `whole` says that the vectors do not reach over the
   last channel. */
template <int R, int J, bool whole>
static void tile(const Sum &s, const Place &p, i64 at) {
  vec y[R][J];
  const i64 last = s.axes - 1;
  const i64 left = s.width - at;
  each<R>([&](auto r) HERE { each<J>([&](auto v) HERE { y[r][v] = vec{}; }); });
  for (int i = 0; i < s.products; i++) {
    const float *weight = s.weight[i] + at, *x = p.x[i];
    const i64 step = p.step[i], depth = s.depth[i], padded = s.padded;
    /* A pointer for every four rows: for one each there are not registers enough. */
    const float *const x4 = x + 4 * step, *const x8 = x + 8 * step;
#pragma GCC unroll 4
    for (i64 k = 0; k < depth; k++, weight += padded) {
      vec row[J];
      each<J>([&](auto v) HERE { row[v] = load(weight + v * LANES); });
      each<R>([&](auto r) HERE {
        const float a = (r < 4 ? x : r < 8 ? x4 : x8)[r % 4 * step + k];
        each<J>([&](auto v) HERE { y[r][v] += a * row[v]; });
      });
    }
  }
  for (int i = 0; i < s.terms; i++) {
    const i64 step = s.term_step[i][last];
    each<J>([&](auto v) HERE {
      const float *const term = p.term[i] + at + v * LANES;
      const i64 some = whole ? LANES : left - v * LANES;
      if (step == 0) {
        const vec same = load(term, some);
        each<R>([&](auto r) HERE { y[r][v] += same; });
      } else
        each<R>([&](auto r) HERE { y[r][v] += load(term + r * step, some); });
    });
  }
  /* What is written may be anything, so what says where is read before. */
  float *to = p.y + at;
  const i64 width = s.width;
  if (whole && s.streams)
    each<R>([&](auto r) HERE {
      each<J>([&](auto v) HERE { stream(to + v * LANES, y[r][v]); });
      to += width;
    });
  else
    each<R>([&](auto r) HERE {
      each<J>([&](auto v) HERE {
        store(to + v * LANES, y[r][v], whole ? LANES : left - v * LANES);
      });
      to += width;
    });
}

typedef void Tile(const Sum &, const Place &, i64);

/* Tiles of R rows: [more than one vector wide][no channel is missing]. */
template <int R>
static Tile *const TILES[2][2] = {{tile<R, 1, false>, tile<R, 1, true>},
                                  {tile<R, 2, false>, tile<R, 2, true>}};

/* Inline: GCC drops calls of what only fetches. */
INLINE void fetch(const float *x, i64 step, i64 rows, i64 depth) {
  for (i64 row = 0; row < rows; row++)
    for (i64 k = 0; k < depth; k += 16) __builtin_prefetch(x + row * step + k);
}

/* Puts the lines of `rows` rows side by side. */
static void gather(const float *x, i64 step, i64 rows, const i64 *line, i64 lines, i64 depth,
                   float *to) {
  for (i64 l = 0; l < lines; l++, to += depth)
    for (i64 row = 0; row < rows; row++)
      for (i64 k = 0; k < depth; k += LANES)
        store(to + row * lines * depth + k, load(x + line[l] + row * step + k, depth - k),
              depth - k);
}

/* Rows `from` to `to` of the last axis, at `places` places from `outer` on: these count the places
   along the axes before it, and do not reach over the end of the nearest. A tile is computed for all
   places before the next: what lies across is read in longer runs then. If some are `apart`, in
   several lines, `side` has room for rows of all that are. */
template <bool apart>
static void sum_rows(const Sum &s, i64 outer, i64 places, i64 from, i64 to, float *side) {
  const i64 last = s.axes - 1, nearest = last > 0 ? last - 1 : 0;
  const float *x[MOST], *term[MOST];
  float *y = s.y + (outer * s.shape[last] + from) * s.width;
  Place p;
  for (int i = 0; i < s.products; i++) {
    x[i] = s.x[i] + from * s.x_step[i][last];
    p.step[i] = s.lines[i] == 1 ? s.x_step[i][last] : s.depth[i];
  }
  for (int i = 0; i < s.terms; i++) term[i] = s.term[i] + from * s.term_step[i][last];
  for (i64 axis = last - 1; axis >= 0; axis--) {
    const i64 at = outer % s.shape[axis];
    outer /= s.shape[axis];
    for (int i = 0; i < s.products; i++) x[i] += at * s.x_step[i][axis];
    for (int i = 0; i < s.terms; i++) term[i] += at * s.term_step[i][axis];
  }
  const bool tall = s.width <= LANES;
  while (from < to) {
    const i64 left = to - from, most = tall ? TALL : WIDE;
    const i64 rows = left >= most ? most : left >= FEW ? FEW : 1;
    Tile *const(*tiles)[2] = TILES<1>;
    if (rows == FEW) tiles = TILES<FEW>;
    if (rows == most) tiles = tall ? TILES<TALL> : TILES<WIDE>;
    for (i64 place = 0; place < places; place++) {
      float *beside = side;
      for (int i = 0; i < s.products; i++) {
        const float *const here = x[i] + place * s.x_step[i][nearest];
        const i64 step = s.x_step[i][last], lines = apart ? s.lines[i] : 1;
        const i64 depth = apart ? s.depth[i] / lines : s.depth[i];
        /* Several places share few sets of the first cache: what is fetched further ahead would be
           gone before it is used. What lies across goes on at the next places. */
        const i64 across = places > 1 ? step_across(s.axes, s.x_step[i]) : 0;
        for (i64 l = 0; l < lines; l++) {
          const float *const line = here + (apart ? s.line[i][l] : 0);
          if (across)
            fetch(line + places * across, step, rows, depth);
          else
            fetch(line + (places > 1 ? 1 : AHEAD) * rows * step, step, rows, depth);
        }
        p.x[i] = here;
        if (lines == 1) continue;
        gather(here, step, rows, s.line[i], lines, depth, beside);
        p.x[i] = beside;
        beside += rows * s.depth[i];
      }
      for (int i = 0; i < s.terms; i++) p.term[i] = term[i] + place * s.term_step[i][nearest];
      p.y = y + place * s.shape[last] * s.width;
      for (i64 at = 0; at < s.width; at += 2 * LANES) {
        const bool two = s.width - at > LANES;
        tiles[two][s.width - at >= (1 + two) * LANES](s, p, at);
      }
    }
    from += rows;
    y += rows * s.width;
    for (int i = 0; i < s.products; i++) x[i] += rows * s.x_step[i][last];
    for (int i = 0; i < s.terms; i++) term[i] += rows * s.term_step[i][last];
  }
  if (s.streams) fence();
}

/* Weights with rows padded to whole tiles, for s; to be freed. */
static float *pack(Sum &s, const float *const *weight) {
  i64 deep = 0;
  for (int i = 0; i < s.products; i++) deep += s.depth[i];
  float *const packed = zeros<float>(deep * s.padded), *to = packed;
  for (int i = 0; packed && i < s.products; i++) {
    s.weight[i] = to;
    for (i64 k = 0; s.width && k < s.depth[i]; k++, to += s.padded)
      memcpy(to, weight[i] + k * s.width, (size_t)s.width * sizeof(float));
  }
  return packed;
}

static Sum sum_into(float *y, i64 width, bool streams) {
  static const i64 here = 0;
  Sum s{};
  for (int i = 0; i < MOST; i++) s.lines[i] = 1, s.line[i] = &here;
  s.y = y, s.width = width, s.padded = padded_to_tiles(width);
  s.streams = streams && width % LANES == 0 && (uintptr_t)y % (LANES * 4) == 0;
  return s;
}

/* How many places along the axis before the last are to be computed at once: some, if rows of a
   product are further apart than they, unless threads would have nothing to do then. */
static i64 at_once(const Sum &s, i64 items, i64 threads) {
  for (int i = 0; i < s.products; i++)
    if (items && step_across(s.axes, s.x_step[i]))
      return least(parts_of(items, 4 * threads), least(ACROSS, s.shape[s.axes - 2]));
  return 1;
}

/* y = the sum of x[i] @ weight[i] over products and of all terms.

   y is [*shape, width], contiguous; weight[i] is [depth[i], width], contiguous; x_step holds `axes`
   steps for each product, term_step for each term. The channels of x[i] are lines[i] lines of equal
   length; `line` holds where each begins, product by product: 0 for one whose channels all lie side
   by side. streams: y is too large for the caches. */
template <typename Pool>
static int sum(const Pool &pool, i64 axes, const i64 *shape, i64 width, i64 products,
               const float *const *x, const i64 *x_step, const i64 *depth, const i64 *lines,
               const i64 *line, const float *const *weight, i64 terms, const float *const *term,
               const i64 *term_step, float *y, i64 streams) {
  Sum s = sum_into(y, width, streams);
  s.axes = axes, s.products = products, s.terms = terms;
  const size_t steps = (size_t)axes * sizeof(i64);
  memcpy(s.shape, shape, steps);
  i64 beside = 0; // floats a row has in several lines
  for (int i = 0; i < products; i++) {
    s.x[i] = x[i], s.depth[i] = depth[i], s.lines[i] = lines[i], s.line[i] = line;
    line += lines[i];
    if (lines[i] > 1) beside += depth[i];
    memcpy(s.x_step[i], x_step + i * axes, steps);
  }
  for (int i = 0; i < terms; i++) {
    s.term[i] = term[i];
    memcpy(s.term_step[i], term_step + i * axes, steps);
  }
  const i64 room = parts_of(TALL * beside, 16) * 16; // whole lines of the cache
  float *const packed = pack(s, weight), *const side = zeros<float>(pool.threads * room);
  const bool enough = packed && side;
  i64 outer = 1;
  for (i64 axis = 0; axis < axes - 2; axis++) outer *= shape[axis];
  const i64 length = shape[axes - 1], parts = parts_of(length, PART);
  const i64 count = axes > 1 ? shape[axes - 2] : 1;
  const i64 some = at_once(s, outer * count * parts, pool.threads), blocks = parts_of(count, some);
  if (enough)
    pool.run(outer * blocks * parts, [&](i64 item, i64 thread) {
      const i64 from = item % parts * PART, block = item / parts;
      const i64 place = block % blocks * some;
      const auto rows = beside ? sum_rows<true> : sum_rows<false>;
      rows(s, block / blocks * count + place, least(some, count - place), from,
           least(from + PART, length), side + thread * room);
    });
  free(packed), free(side);
  return !enough;
}

/* -- sums over two axes ---------------------------------------------------------------------- */

/* Over the first axis of x, [rows, count, width], which is `step` long, added to over_rows; over the
   second, which is `next` long, times `scale`, to over_count. */
static void sum_both(const float *x, i64 step, i64 next, i64 rows, i64 count, i64 width,
                     float *over_rows, float *over_count, float scale) {
  /* What is fetched is as far ahead where rows lie side by side and where they do not. */
  const i64 ahead = next == width ? FETCHED : next * (width < FETCHED ? FETCHED / width : 1);
  for (i64 row = 0; row < rows; row += 4) {
    const i64 some = least(4, rows - row);
    for (i64 at = 0; at < width; at += LANES) {
      const i64 lanes = width - at;
      const float *from = x + row * step + at;
      float *to = over_rows + at;
      vec total[4] = {};
      for (i64 start = 0; start < count; start += PART) {
        const i64 end = least(start + PART, count);
        vec sum[4] = {};
        if (some == 4 && lanes >= LANES)
          for (i64 n = start; n < end; n++, from += next, to += width) {
            each<4>([&](auto r) HERE { __builtin_prefetch(from + r * step + ahead); });
            const vec a = load(from), b = load(from + step);
            const vec c = load(from + 2 * step), d = load(from + 3 * step);
            sum[0] += a, sum[1] += b, sum[2] += c, sum[3] += d;
            store(to, load(to) + ((a + b) + (c + d)));
          }
        else
          for (i64 n = start; n < end; n++, from += next, to += width)
            for (i64 r = 0; r < some; r++) {
              const vec a = load(from + r * step, lanes);
              sum[r] += a;
              store(to, load(to, lanes) + a, lanes);
            }
        each<4>([&](auto r) HERE { total[r] += sum[r]; });
      }
      for (i64 r = 0; r < some; r++)
        store(over_count + (row + r) * width + at, total[r] * scale, lanes);
    }
  }
}

/* How many rows a thread sums in order: no more than PART, and so few that every thread has
   several parts. A multiple of four. */
static i64 part_of_rows(i64 batch, i64 rows, i64 threads) {
  const i64 parts = parts_of(4 * threads, batch > 0 ? batch : 1);
  return least(parts_of(rows > 0 ? rows : 1, 4 * parts) * 4, PART);
}

/* to[b] = scale times the sum of all parts of partial[b, parts, size]. */
template <typename Pool>
static void add_parts(const Pool &pool, const float *partial, i64 batch, i64 parts, i64 size,
                      float scale, float *to) {
  const i64 pieces = parts_of(size, PART);
  pool.run(batch * pieces, [&](i64 item, i64) {
    const i64 b = item / pieces, from = item % pieces * PART;
    for (i64 k = from; k < least(from + PART, size); k++) {
      double sum = 0;
      for (i64 p = 0; p < parts; p++) sum += partial[(b * parts + p) * size + k];
      to[b * size + k] = (float)(sum * scale);
    }
  });
}

/* Whether threads can share so many rows, of which they take four at a time. */
static bool can_share(i64 batch, i64 rows, i64 threads) {
  return batch * parts_of(rows, 4) >= 2 * threads;
}

/* Of x, [*outer, rows, count, width], the sums over rows, times row_scale: [*outer, count, width],
   and over count, times count_scale: [*outer, rows, width].

   shape holds the `axes` axes but width, of which there are two at least, and x_step the step of x
   along each; channels, of width, lie side by side. The results are contiguous. */
template <typename Pool>
static int sums(const Pool &pool, i64 axes, const i64 *shape, const float *x, const i64 *x_step,
                i64 width, float *over_rows, float row_scale, float *over_count,
                float count_scale) {
  const i64 outer = axes - 2;
  i64 batch = 1, rows = shape[outer], count = shape[outer + 1];
  i64 step = x_step[outer], next = x_step[outer + 1];
  for (i64 axis = 0; axis < outer; axis++) batch *= shape[axis];
  /* Memory is quickest read along the axis of shorter steps. */
  if (next > step && rows > 1 && can_share(batch, count, pool.threads)) {
    std::swap(rows, count), std::swap(step, next);
    std::swap(over_rows, over_count), std::swap(row_scale, count_scale);
  }
  const i64 size = count * width, part = part_of_rows(batch, rows, pool.threads);
  const i64 parts = parts_of(rows, part);
  const bool whole = parts == 1; // one part is the result
  float *const partial = whole ? over_rows : zeros<float>(batch * parts * size);
  if (!partial) return 1;
  pool.run(batch * parts, [&](i64 item, i64) {
    const i64 from = item % parts * part, row = item / parts * rows + from;
    const float *at = x + from * step;
    float *const to = partial + item * size;
    i64 rest = item / parts;
    for (i64 axis = outer - 1; axis >= 0; axis--) {
      at += rest % shape[axis] * x_step[axis];
      rest /= shape[axis];
    }
    if (whole) memset(to, 0, (size_t)size * sizeof(float));
    sum_both(at, step, next, least(part, rows - from), count, width, to, over_count + row * width,
             count_scale);
    if (whole)
      for (i64 k = 0; k < size; k += LANES)
        store(to + k, load(to + k, size - k) * row_scale, size - k);
  });
  if (whole) return 0;
  add_parts(pool, partial, batch, parts, size, row_scale, over_rows);
  free(partial);
  return 0;
}

/* -- outer products -------------------------------------------------------------------------- */

/* Rows whose x and g the first cache holds. */
INLINE i64 chunk_of(i64 depth, i64 width) {
  const i64 rows = CACHED / (depth + width);
  return rows < 16 ? 16 : least(rows, PART);
}

/* K rows and J vectors of `total` += the sum over `rows` of x^T g, which has `left` channels. */
template <int K, int J, bool whole>
static void outer_tile(const float *x, i64 x_step, const float *g, i64 g_step, i64 rows, i64 left,
                       double *total, i64 padded, i64 x_next, i64 g_next) {
  vec sum[K][J];
  each<K>([&](auto k) HERE { each<J>([&](auto v) HERE { sum[k][v] = vec{}; }); });
  for (; rows > 0; rows--, x += x_step, g += g_step) {
    vec row[J];
    __builtin_prefetch(x + x_next), __builtin_prefetch(g + g_next);
    each<J>([&](auto v) HERE { row[v] = load(g + v * LANES, whole ? LANES : left - v * LANES); });
    each<K>([&](auto k) HERE { each<J>([&](auto v) HERE { sum[k][v] += x[k] * row[v]; }); });
  }
  each<K>([&](auto k) HERE {
    each<J>([&](auto v) HERE {
      double *const to = total + k * padded + v * LANES;
      float lanes[LANES]; // the sums themselves should stay in registers
      store(lanes, sum[k][v]);
      for (int lane = 0; lane < LANES; lane++) to[lane] += lanes[lane];
    });
  });
}

typedef void Outer(const float *, i64, const float *, i64, i64, i64, double *, i64, i64, i64);

/* Of K rows if two vectors wide, else of L: [more than one vector wide][no channel is missing]. */
template <int K, int L>
static Outer *const OUTERS[2][2] = {{outer_tile<L, 1, false>, outer_tile<L, 1, true>},
                                    {outer_tile<K, 2, false>, outer_tile<K, 2, true>}};

/* total, [depth, padded], += the sum over rows of x^T g. What is fetched is x_ahead and g_ahead
   floats on. */
static void outer_rows(const float *x, i64 x_step, i64 depth, i64 x_ahead, const float *g,
                       i64 g_step, i64 width, i64 g_ahead, i64 rows, double *total, i64 padded) {
  const i64 part = chunk_of(depth, width);
  for (i64 from = 0; from < rows; from += part) { // what all tiles read stays in the cache
    const i64 some = least(part, rows - from);
    const float *const at_x = x + from * x_step, *const at_g = g + from * g_step;
    i64 line = 0; // of the next part, that a tile fetches
    for (i64 at = 0; at < width; at += 2 * LANES) {
      const i64 left = width - at, two = left > LANES, most = two ? DEEP / 2 : DEEP;
      const bool full = left >= (1 + two) * LANES;
      Outer *const tile = OUTERS<DEEP / 2, DEEP>[two][full], *const one = OUTERS<1, 1>[two][full];
      for (i64 k = 0; k < depth; line += 16) {
        const bool fits = depth - k >= most;
        double *const to = total + k * padded + at;
        (fits ? tile : one)(at_x + k, x_step, at_g + at, g_step, some, left, to, padded,
                            x_ahead + line % depth - k, g_ahead + line % width - at);
        k += fits ? most : 1;
      }
    }
  }
}

/* weight, [depth, width], = the sum over threads of partial, [threads, depth, padded]. */
static void add_threads(const double *partial, i64 threads, i64 depth, i64 width, i64 padded,
                        float *weight) {
  for (i64 k = 0; k < depth; k++)
    for (i64 j = 0; j < width; j++) {
      double sum = 0;
      for (i64 t = 0; t < threads; t++) sum += partial[(t * depth + k) * padded + j];
      weight[k * width + j] = (float)sum;
    }
}

/* weight = the sum over all rows of x^T g, [depth, width]; x and g have `axes` axes of rows. */
template <typename Pool>
static int outer(const Pool &pool, i64 axes, const i64 *shape, const float *x, const i64 *x_step,
                 i64 depth, const float *g, const i64 *g_step, i64 width, float *weight) {
  const i64 last = axes - 1;
  const i64 padded = padded_to_tiles(width);
  const i64 length = shape[last], parts = parts_of(length, PART);
  i64 places = 1;
  for (i64 axis = 0; axis < last; axis++) places *= shape[axis];
  double *const partial = zeros<double>(pool.threads * depth * padded);
  if (!partial) return 1;
  /* The next part, or of what lies across the same rows two places on. */
  const auto ahead = [&](const i64 *step) {
    const i64 across = step_across(axes, step);
    return across ? 2 * across : chunk_of(depth, width) * step[last];
  };
  pool.run(places * parts, [&](i64 item, i64 thread) {
    const i64 from = item % parts * PART;
    const float *at_x = x + from * x_step[last], *at_g = g + from * g_step[last];
    i64 rest = item / parts;
    for (i64 axis = last - 1; axis >= 0; axis--) {
      at_x += rest % shape[axis] * x_step[axis];
      at_g += rest % shape[axis] * g_step[axis];
      rest /= shape[axis];
    }
    outer_rows(at_x, x_step[last], depth, ahead(x_step), at_g, g_step[last], width, ahead(g_step),
               least(PART, length - from), partial + thread * depth * padded, padded);
  });
  add_threads(partial, pool.threads, depth, width, padded, weight);
  free(partial);
  return 0;
}

/* -- all gradients at once ------------------------------------------------------------------- */

/* From g, [batch, rows, count, inner, width], the gradient of x @ weight + a + b, where a was
   repeated over rows and b over count: to_x = g @ transposed, the sum over all rows of x^T g in
   to_weight, [depth, width], and the sums of g over rows and over count, where they are not null.

   x and to_x are [batch, rows, count, inner, depth], transposed is [width, depth]. To to_x are
   added first, repeated over rows, and second, repeated over count, unless they are null: gradients
   of x from elsewhere. All is contiguous. */
template <typename Pool>
static int back(const Pool &pool, const float *g, const float *x, i64 batch, i64 rows, i64 count,
                i64 inner, i64 width, i64 depth, const float *transposed, const float *first,
                const float *second, float *to_x, float *to_weight, float *over_rows,
                float *over_count, i64 streams) {
  const i64 line = count * inner, size = line * width, padded = padded_to_tiles(width);
  Sum s = sum_into(to_x, depth, streams);
  /* Without an inner axis that of `count` is the longest to run along. */
  const bool flat = inner == 1 || !first;
  s.axes = 1 + !flat, s.shape[0] = flat ? line : count, s.shape[1] = inner;
  s.products = 1, s.depth[0] = width;
  s.x_step[0][0] = flat ? width : inner * width, s.x_step[0][1] = width;
  if (first) {
    s.terms = 2;
    s.term_step[0][0] = flat ? depth : inner * depth, s.term_step[0][1] = depth;
    s.term_step[1][1] = depth;
  }
  const i64 part = part_of_rows(batch, rows, pool.threads), parts = parts_of(rows, part);
  const i64 chunk = chunk_of(depth, width), block = over_rows ? 4 : part;
  float *const packed = pack(s, &transposed);
  float *const partial = zeros<float>(over_rows ? batch * parts * size : 0);
  double *const by_thread = zeros<double>(pool.threads * depth * padded);
  const bool enough = packed && partial && by_thread;
  /* Of one batch, `some` lines of to_x. */
  const auto sum_lines = [&](i64 b, i64 at, i64 some) {
    for (i64 run; some > 0; at += run, some -= run) {
      const i64 row = b * rows + at / line, place = at % line, last = s.shape[s.axes - 1];
      run = least(last - place % last, some);
      Sum here = s;
      here.x[0] = g + row * size, here.y = to_x + row * line * depth;
      if (first) here.term[0] = first + b * line * depth, here.term[1] = second + row * inner * depth;
      sum_rows<false>(here, place / last, 1, place % last, place % last + run, nullptr);
    }
  };
  if (enough) {
    pool.run(batch * parts, [&](i64 item, i64 thread) {
      const i64 b = item / parts, start = item % parts * part, end = least(start + part, rows);
      double *const mine = by_thread + thread * depth * padded;
      for (i64 from = start; from < end; from += block) {
        const i64 row = b * rows + from, some = least(block, end - from);
        if (over_rows) // of few rows, that stay in the second cache
          sum_both(g + row * size, size, inner * width, some, count, inner * width,
                   partial + item * size, over_count + row * inner * width, 1.0f);
        for (i64 at = from * line; at < (from + some) * line; at += chunk) {
          const i64 lines = least(chunk, (from + some) * line - at), place = b * rows * line + at;
          outer_rows(x + place * depth, depth, depth, chunk * depth, g + place * width, width, width,
                     chunk * width, lines, mine, padded);
          sum_lines(b, at, lines);
        }
      }
    });
    if (over_rows) add_parts(pool, partial, batch, parts, size, 1.0f, over_rows);
    add_threads(by_thread, pool.threads, depth, width, padded, to_weight);
  }
  free(packed), free(partial), free(by_thread);
  return !enough;
}
