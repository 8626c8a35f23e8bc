/* Sums of products, means and outer products of large arrays of few channels, in float32, each in
   one go over memory. PyTorch's own take an op, and a pass over memory, for every product, every
   term and every mean.

   Arrays have any number of axes of rows and a last one of channels, which lie side by side. Steps
   count floats, not bytes, and are 0 along axes an array is broadcast over. Every function returns
   0, or 1 if it ran out of memory; all integers are of 64 bits.

   Threads are those of who includes this: a Pool has `threads`, their number, and
   `run(count, work)`, which calls work(item, thread) once for every item from 0 to count - 1, on
   threads 0 to threads - 1, and a `fence` after what a thread does. Items are much alike. */

#pragma once

#include "vectors.hpp"

/* Rows of a tile of one and of two vectors, as many as the registers hold. */
constexpr int TALL = 12, WIDE = LANES == 8 ? 6 : 8;
constexpr int FEW = 4;    // rows of a tile where more do not fit
constexpr int DEEP = 16;  // rows of a tile of an outer product, of one vector; half of two
constexpr int MOST = 8;   // axes, products and terms of a sum
constexpr int PART = 256; // rows that a thread takes at once, and that float32 adds up in order
constexpr int LONG = 1024; // rows of a sum that a thread takes at once where there are many
constexpr int FETCHED = 256; // floats between what is fetched and what is added up
constexpr int CACHED = 1 << 13; // floats of the first cache that are worked on at a time
constexpr int ACROSS = 8; // places that are computed at once where rows lie across
constexpr int AHEAD = 2048; // floats between what is fetched and what is multiplied, row by row

INLINE i64 padded_to_tiles(i64 width) { return parts_of(width, 2 * LANES) * 2 * LANES; }

/* -- sums of products ------------------------------------------------------------------------ */

/* Where rows lie across, with places along the axis before them between: the step to the next place;
   else 0. */
INLINE i64 step_across(i64 axes, const i64 *step) {
  return axes > 1 && step[axes - 1] > step[axes - 2] ? step[axes - 2] : 0;
}

/* What there is in every row of a sum. */
struct Row {
  i64 products, terms, width, padded;
  bool streams;
};

struct Sum : Row {
  i64 axes, shape[MOST];
  i64 depth[MOST], x_step[MOST][MOST], term_step[MOST][MOST];
  i64 lines[MOST]; // in which the channels of x lie, and where they begin
  const i64 *line[MOST];
  const float *x[MOST], *weight[MOST], *term[MOST];
  float *y;
};

/* What is multiplied and added in tiles that follow one another: steps from row to row, what is next
   from tile to tile, and how far ahead x is fetched. */
struct Product {
  const float *x, *weight;
  i64 depth, step, next, ahead;

  /* Whether rows of x lie side by side: they are fetched bit by bit, while others are multiplied. */
  bool dense() const { return step == depth; }
};
struct Term {
  const float *at;
  i64 step, next;
};
struct Tiles {
  Product product[MOST];
  Term term[MOST];
  float *y;
  i64 next;
};

/* R rows and J vectors of y += x @ weight, in the `index`th tile, from channel `at`. */
template <int R, int J>
INLINE void multiply(vec (&y)[R][J], const Product &p, i64 padded, i64 index, i64 at) {
  const float *weight = p.weight + at, *const x = p.x + index * p.next;
  /* A pointer for every four rows: for one each there are not registers enough. */
  const float *const x4 = x + 4 * p.step, *const x8 = x + 8 * p.step, *far = x + p.ahead;
  const i64 some = p.dense() ? R : 0;
#pragma GCC unroll 4
  for (i64 k = 0; k < p.depth; k++, weight += padded, far += some) {
    __builtin_prefetch(far);
    vec row[J];
    each<J>([&](auto v) HERE { row[v] = load(weight + v * LANES); });
    each<R>([&](auto r) HERE {
      const float a = (r < 4 ? x : r < 8 ? x4 : x8)[r % 4 * p.step + k];
      each<J>([&](auto v) HERE { y[r][v] += a * row[v]; });
    });
  }
}

/* R rows and J vectors of y, from channel `at`; `whole` says that the vectors do not reach over the
   last channel. The first product is given by itself: it stays in registers. */
template <int R, int J, bool whole>
INLINE void tile(const Row &s, const Product &first, const Tiles &t, i64 index, i64 at) {
  vec y[R][J];
  each<R>([&](auto r) HERE { each<J>([&](auto v) HERE { y[r][v] = vec{}; }); });
  multiply(y, first, s.padded, index, at);
  for (i64 i = 1; i < s.products; i++) multiply(y, t.product[i], s.padded, index, at);
  const i64 left = s.width - at;
  for (i64 i = 0; i < s.terms; i++) {
    const i64 step = t.term[i].step;
    each<J>([&](auto v) HERE {
      const float *const term = t.term[i].at + index * t.term[i].next + at + v * LANES;
      const i64 some = whole ? LANES : left - v * LANES;
      if (step == 0) {
        const vec same = load(term, some);
        each<R>([&](auto r) HERE { y[r][v] += same; });
      } else
        each<R>([&](auto r) HERE { y[r][v] += load(term + r * step, some); });
    });
  }
  float *to = t.y + index * t.next + at;
  if (whole && s.streams)
    each<R>([&](auto r) HERE {
      each<J>([&](auto v) HERE { stream(to + v * LANES, y[r][v]); });
      to += s.width;
    });
  else
    each<R>([&](auto r) HERE {
      each<J>([&](auto v) HERE {
        store(to + v * LANES, y[r][v], whole ? LANES : left - v * LANES);
      });
      to += s.width;
    });
}

/* Lines of the cache from x on, of `depth` floats in each of R rows. Inline: GCC drops calls of what
   only fetches. */
template <int R>
INLINE void fetch(const float *x, i64 step, i64 depth) {
  const float *const x4 = x + 4 * step, *const x8 = x + 8 * step;
  for (i64 k = 0; k < depth; k += 16)
    each<R>([&](auto r) HERE {
      const float *const four = r < 4 ? x : r < 8 ? x4 : x8;
      __builtin_prefetch(four + (r % 4 * step + k));
    });
}

/* Tiles `from` to `to`, of R rows and all channels. */
template <int R>
static void tiles(const Sum &sum, const Tiles &t, i64 from, i64 to) {
  /* What is written may be anything, so what every tile asks for is read before. */
  const Row s = sum;
  const Product first = t.product[0];
  for (i64 n = from; n < to; n++) {
    if (!first.dense()) fetch<R>(first.x + n * first.next + first.ahead, first.step, first.depth);
    for (i64 i = 1; i < s.products; i++) {
      const Product &p = t.product[i];
      if (!p.dense()) fetch<R>(p.x + n * p.next + p.ahead, p.step, p.depth);
    }
    for (i64 at = 0; at < s.width; at += 2 * LANES) {
      const i64 left = s.width - at;
      if (left == LANES)
        tile<R, 1, true>(s, first, t, n, at);
      else if (left < LANES)
        tile<R, 1, false>(s, first, t, n, at);
      else if constexpr (R <= WIDE) {
        if (left >= 2 * LANES)
          tile<R, 2, true>(s, first, t, n, at);
        else
          tile<R, 2, false>(s, first, t, n, at);
      }
    }
  }
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

/* The `index`th of these tiles, of R rows; what is apart is put side by side before. */
template <int R>
static void tile_apart(const Sum &s, Tiles t, i64 index, float *side) {
  for (i64 i = 0; i < s.products; i++) {
    if (s.lines[i] == 1) continue;
    Product &p = t.product[i];
    const float *const x = p.x + index * p.next;
    const i64 depth = p.depth / s.lines[i];
    for (i64 l = 0; l < s.lines[i]; l++) fetch<R>(x + p.ahead + s.line[i][l], p.step, depth);
    gather(x, p.step, R, s.line[i], s.lines[i], depth, side);
    p.x = side, p.step = p.depth, p.next = p.ahead = 0;
    side += R * p.depth;
  }
  tiles<R>(s, t, index, index + 1);
}

/* `count` tiles of R rows; if some of x are `apart`, `side` has room for rows of all that are. */
template <int R, bool apart>
static void some_tiles(const Sum &s, const Tiles &t, i64 count, float *side) {
  if (apart)
    for (i64 n = 0; n < count; n++) tile_apart<R>(s, t, n, side);
  else
    tiles<R>(s, t, 0, count);
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
  for (i64 i = 0; i < s.products; i++) x[i] = s.x[i] + from * s.x_step[i][last];
  for (i64 i = 0; i < s.terms; i++) term[i] = s.term[i] + from * s.term_step[i][last];
  for (i64 axis = last - 1; axis >= 0; axis--) {
    const i64 at = outer % s.shape[axis];
    outer /= s.shape[axis];
    for (i64 i = 0; i < s.products; i++) x[i] += at * s.x_step[i][axis];
    for (i64 i = 0; i < s.terms; i++) term[i] += at * s.term_step[i][axis];
  }
  const i64 most = s.width <= LANES ? TALL : WIDE;
  while (from < to) {
    const i64 left = to - from, rows = left >= most ? most : left >= FEW ? FEW : 1;
    const i64 count = places > 1 ? places : left / rows;
    const auto next = [&](const i64 *step) HERE {
      return places > 1 ? step[nearest] : rows * step[last];
    };
    Tiles t{{{s.y, s.y, 0, 0, 0, 0}}, {}, y, (places > 1 ? s.shape[last] : rows) * s.width};
    for (i64 i = 0; i < s.products; i++) {
      /* Several places share few sets of the first cache: what is fetched further ahead would be
         gone before it is used. What lies across goes on at the next places. */
      const i64 *const step = s.x_step[i], depth = s.depth[i];
      const i64 far = places > 1 || rows * depth > AHEAD || depth == 0 ? rows : AHEAD / depth;
      const i64 across = places > 1 ? step_across(s.axes, step) : 0;
      t.product[i] = Product{x[i],       s.weight[i], depth,
                             step[last], next(step),  across ? places * across : far * step[last]};
    }
    for (i64 i = 0; i < s.terms; i++)
      t.term[i] = Term{term[i], s.term_step[i][last], next(s.term_step[i])};
    const auto some = rows == 1      ? some_tiles<1, apart>
                      : rows == FEW  ? some_tiles<FEW, apart>
                      : most == TALL ? some_tiles<TALL, apart>
                                     : some_tiles<WIDE, apart>;
    some(s, t, count, side);
    const i64 done = places > 1 ? rows : rows * count;
    from += done;
    y += done * s.width;
    for (i64 i = 0; i < s.products; i++) x[i] += done * s.x_step[i][last];
    for (i64 i = 0; i < s.terms; i++) term[i] += done * s.term_step[i][last];
  }
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
  const i64 length = shape[axes - 1], count = axes > 1 ? shape[axes - 2] : 1;
  const i64 part = outer * count * length < 16 * LONG * pool.threads ? PART : LONG;
  const i64 parts = parts_of(length, part);
  const i64 some = at_once(s, outer * count * parts, pool.threads), blocks = parts_of(count, some);
  if (enough)
    pool.run(outer * blocks * parts, [&](i64 item, i64 thread) {
      const i64 from = item % parts * part, block = item / parts;
      const i64 place = block % blocks * some;
      const auto rows = beside ? sum_rows<true> : sum_rows<false>;
      rows(s, block / blocks * count + place, least(some, count - place), from,
           least(from + part, length), side + thread * room);
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
        const auto add_four = [&](auto whole) HERE {
          const i64 size = whole ? LANES : lanes;
          for (i64 n = start; n < end; n++, from += next, to += width) {
            each<4>([&](auto r) HERE { __builtin_prefetch(from + r * step + ahead); });
            const vec a = load(from, size), b = load(from + step, size);
            const vec c = load(from + 2 * step, size), d = load(from + 3 * step, size);
            sum[0] += a, sum[1] += b, sum[2] += c, sum[3] += d;
            store(to, load(to, size) + ((a + b) + (c + d)), size);
          }
        };
        if (some == 4 && lanes >= LANES)
          add_four(std::true_type{});
        else if (some == 4)
          add_four(std::false_type{});
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
