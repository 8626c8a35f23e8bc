/* Products of many channels, of matrices that lie in parts: in float32, read and written where the
   parts lie. A library's matrix product takes one matrix and makes one, so what a layer mixes would
   have to be put together before, taken apart after, and held in between.

   Rows are the same for all parts of a matrix, channels are those of one part after the other, and
   the channels of a part lie in lines, as for sums. The scheme is that of Goto and van de Geijn
   (ACM TOMS 34(3), 2008): a tile of the result stays in registers, the packed rows of x in the
   second cache, or come from the third. */

#pragma once

#include "amx.hpp"
#include "vectors.hpp"

constexpr int ROWS = LANES == 16 ? 12 : LANES == 8 ? 6 : 3; // of a tile of two vectors
static_assert(ROWS <= LANES && ROWS % 3 == 0, "rows are packed as lanes, and tiles come in thirds");
constexpr i64 PANEL = 2 * LANES; // channels of a tile, at most
constexpr i64 BLOCK = 256;       // entries added up before a result is written
constexpr i64 PANELS = 8;        // packed together
constexpr bool SPILLS = PANEL * BLOCK > 1 << 12; // a packed panel out of half of the first cache
constexpr i64 MOST_ROWS = 540;   // packed together
constexpr i64 MOST_FEW = 24;     // rows that a weight is read for where it lies
static_assert(MOST_ROWS % ROWS == 0, "rows are packed in whole tiles");

/* Parts of a matrix: where they are, steps along every axis of rows for each, and their channels,
   that lie in so many lines of equal length, which begin at `line`, part by part. */
struct Parts {
  i64 count;
  float *const *at;
  const i64 *step, *width, *lines, *line;
};

/* Channels side by side. */
struct Run {
  float *at; // in row 0
  i64 width, part, start;
};

/* All of a matrix: runs in order, and its rows. */
struct Matrix {
  i64 axes, rows, channels, runs, parts;
  const i64 *shape, *step;
  Run *run;
};

static Matrix matrix_of(i64 axes, const i64 *shape, const Parts &parts) {
  Matrix m{axes, 1, 0, 0, parts.count, shape, parts.step, nullptr};
  for (i64 axis = 0; axis < axes; axis++) m.rows *= shape[axis];
  for (i64 i = 0; i < parts.count; i++) m.runs += parts.lines[i];
  m.run = zeros<Run>(m.runs);
  if (!m.run) return m;
  const i64 *line = parts.line;
  i64 runs = 0;
  for (i64 i = 0; i < parts.count; i++)
    for (i64 l = 0; l < parts.lines[i]; l++, line++) {
      const i64 width = parts.width[i] / parts.lines[i];
      float *const at = parts.at[i] + *line;
      Run *const before = l ? m.run + runs - 1 : nullptr;
      if (before && before->at + before->width == at)
        before->width += width;
      else
        m.run[runs++] = Run{at, width, i, m.channels};
      m.channels += width;
    }
  m.runs = runs;
  return m;
}

/* Where rows `from` to `from + some` of every part lie: to[part * MOST + row], from its row 0. */
static void places_of(const Matrix &m, i64 from, i64 some, i64 most, i64 *to) {
  for (i64 part = 0; part < m.parts; part++)
    for (i64 row = 0; row < some; row++) {
      i64 rest = from + row, place = 0;
      for (i64 axis = m.axes - 1; axis >= 0; axis--) {
        place += rest % m.shape[axis] * m.step[part * m.axes + axis];
        rest /= m.shape[axis];
      }
      to[part * most + row] = place;
    }
}

/* to[k * step + r] = from[r][k], for `rows` rows, of `depth` entries each; other entries up to LANES
   rows may become anything, and `spare` floats after the last may be written. */
static void pack_rows(const float *const *from, i64 rows, i64 depth, i64 step, float *to) {
  i64 k = 0;
  for (; k + LANES <= depth; k += LANES) {
    vec v[LANES];
    each<LANES>([&](auto r) HERE { v[r] = r < rows ? load(from[r] + k) : vec{}; });
    turn(v);
    each<LANES>([&](auto r) HERE { store(to + (k + r) * step, v[r]); });
  }
  for (; k < depth; k++)
    for (i64 r = 0; r < LANES; r++) to[k * step + r] = r < rows ? from[r][k] : 0;
}

/* Two vectors of channels, of which each lies side by side: of a result, at `to` in a row of `part`
   at place 0, and of what is packed for it, at `from` in one of `source`. */
struct Panel {
  float *to[2];
  const float *from[2];
  i64 width[2], start[2], part[2], source[2];
};

/* What a tile does with what is there before: add to it; or write over it, past the caches if the
   tile is whole. */
enum Writing { ADDS, WRITES, STREAMS };

/* The first `some` of a tile's results in a row; they are returned. */
INLINE vec write(float *to, vec value, i64 some, Writing how) {
  if (how == ADDS) value += load(to, some);
  if (how == STREAMS && some == LANES)
    stream(to, value);
  else
    store(to, value, some);
  return value;
}

/* A panel of what is multiplied: packed, or where it lies. */
struct Lines {
  const float *at;
  i64 step;
};

/* Of R rows and J vectors of a panel: packed a, [depth, ROWS], times b, [depth, PANEL], of which lines
   are fetched that the first cache lacks. Row r of part p is at place[p * MOST_ROWS + r]. */
template <int R, int J, bool fetches>
static void product_tile(const float *a, const Lines &of_b, i64 depth, const Panel &p,
                         const i64 *place, i64 rows, Writing how) {
  const float *b = of_b.at;
  const i64 step = of_b.step;
  vec sum[R][J];
  each<R>([&](auto r) HERE { each<J>([&](auto v) HERE { sum[r][v] = vec{}; }); });
  if (how == ADDS)
    for (i64 v = 0; v < J; v++)
      for (i64 r = 0; r < rows; r++) __builtin_prefetch(p.to[v] + place[p.part[v] * MOST_ROWS + r]);
#pragma GCC unroll 4
  for (i64 k = 0; k < depth; k++, a += ROWS, b += step) {
    if constexpr (fetches)
      each<J>([&](auto v) HERE {
        if constexpr (v * LANES % 16 == 0) __builtin_prefetch(b + (2 * PANEL + v * LANES));
      });
    vec row[J];
    each<J>([&](auto v) HERE { row[v] = load(b + v * LANES); });
    each<R>([&](auto r) HERE { each<J>([&](auto v) HERE { sum[r][v] += a[r] * row[v]; }); });
  }
  each<J>([&](auto v) HERE {
    const i64 *const places = place + p.part[v] * MOST_ROWS;
    each<R>([&](auto r) HERE {
      if (r < rows) write(p.to[v] + places[r], sum[r][v], p.width[v], how);
    });
  });
}

typedef void ProductTile(const float *, const Lines &, i64, const Panel &, const i64 *, i64, Writing);

/* By thirds of the rows of a tile: [thirds - 1][more than one vector wide]. */
template <bool fetches>
static ProductTile *const PRODUCT_TILES[3][2] = {
    {product_tile<ROWS / 3, 1, fetches>, product_tile<ROWS / 3, 2, fetches>},
    {product_tile<2 * ROWS / 3, 1, fetches>, product_tile<2 * ROWS / 3, 2, fetches>},
    {product_tile<ROWS, 1, fetches>, product_tile<ROWS, 2, fetches>}};

/* Into a row of a packed panel. */
INLINE void pack_panel(const float *const *from, const i64 *width, float *to) {
  each<2>([&](auto v) HERE {
    store(to + v * LANES, width[v] > 0 ? load(from[v], width[v]) : vec{});
  });
}

static Panel *panels_of(const Matrix &m, i64 *count) {
  i64 vectors = 0, v = 0;
  for (i64 i = 0; i < m.runs; i++) vectors += parts_of(m.run[i].width, LANES);
  *count = parts_of(vectors, 2);
  Panel *const panels = zeros<Panel>(*count);
  for (i64 i = 0; panels && i < m.runs; i++) {
    const Run &run = m.run[i];
    for (i64 at = 0; at < run.width; at += LANES, v++) {
      Panel &panel = panels[v / 2];
      for (i64 k = v % 2; k < 2; k++) panel.to[k] = run.at + at, panel.from[k] = run.at + at;
      panel.width[v % 2] = least(LANES, run.width - at), panel.start[v % 2] = run.start + at;
      panel.part[v % 2] = panel.source[v % 2] = run.part;
    }
  }
  return panels;
}

/* What a thread packs: rows of x, and panels of what they are multiplied by; and sums to be. */
struct Packed {
  float *a, *b, *c;
};
constexpr i64 AMX_ROWS = 512, AMX_CHANNELS = 272, AMX_PANELS = 8; // packed together by AMX
#if SYMCOMPILE_AMX
constexpr i64 ROOM_A = AMX_CHANNELS * 2 * BLOCK * SPLIT / 2, ROOM_C = AMX_PANELS * PANEL * AMX_ROWS;
#else
constexpr i64 ROOM_A = MOST_ROWS * BLOCK + LANES, ROOM_C = 0;
#endif
constexpr i64 ROOM_B = PANELS * PANEL * BLOCK, ROOM = ROOM_A + ROOM_B + ROOM_C;

/* Room for every thread, of which `line` is where the first begins; to be freed. */
static float *room_for(i64 threads, float **line) {
  float *const room = (float *)malloc((size_t)(threads * ROOM + 16) * sizeof(float));
  *line = room + 16 - (uintptr_t)room / sizeof(float) % 16;
  return room;
}

/* How many rows, of a product of so many, a thread packs at once, in tiles of `side`: all threads
   have as many to do. */
static i64 rows_at_once(i64 rows, i64 threads, i64 most, i64 side) {
  const i64 blocks = parts_of(parts_of(rows > 0 ? rows : 1, most), threads) * threads;
  return parts_of(parts_of(rows, blocks), side) * side;
}

/* What is packed at once: so many entries to be added up, of so many panels. */
struct Shape {
  i64 block, group; // PANELS at most
};

/* For few rows the time is that of reading the weight, which is quickest along its rows. */
constexpr Shape FEW_ROWS{64, PANELS}, FEW_ROWS_TRANSPOSED{4 * BLOCK, PANELS / 4};

/* `rows` rows of panels of a result; row r of part p lies at place[p * MOST_ROWS + r]. `depth`
   entries are added up, a block of them at a time.
   pack_a(from, some, to) packs all rows, pack_b(panel, from, some, to) a panel, or says where it
   lies, of entries `from` to `from + some`. */
template <typename A, typename B>
static void product_block(i64 rows, i64 depth, const Shape &of, const Panel *panel, i64 panels,
                          const i64 *place, bool streams, const Packed &room, A pack_a, B pack_b) {
  const i64 block = of.block, group = of.group;
  streams = streams && depth <= block;
  for (i64 from = 0; from < depth; from += block) {
    const i64 some = least(block, depth - from);
    const Writing how = from > 0 ? ADDS : streams ? STREAMS : WRITES;
    pack_a(from, some, room.a);
    for (i64 p = 0; p < panels; p += group) {
      const i64 count = least(group, panels - p);
      Lines lines[PANELS];
      for (i64 q = 0; q < count; q++) lines[q] = pack_b(panel[p + q], from, some, room.b + q * some * PANEL);
      for (i64 q = 0; q < count; q++) {
        const Panel &to = panel[p + q];
        const bool fetches = SPILLS || lines[q].step != PANEL; // what lies elsewhere is in memory
        const auto tiles = fetches ? PRODUCT_TILES<true> : PRODUCT_TILES<false>;
        for (i64 row = 0; row < rows; row += ROWS) {
          const i64 left = least(ROWS, rows - row);
          tiles[(3 * left - 1) / ROWS][to.width[1] > 0](
              room.a + row * some, lines[q], some, to, place + row, left, how);
        }
      }
    }
  }
}

#if SYMCOMPILE_AMX
/* to[r * step + c]: `rows` rows of `width` channels from `start` on, which is in `run`; zeros up to
   512 floats. Row r of part p lies at place[p * most + r]. */
static void gather(const Run *run, i64 start, i64 width, const i64 *place, i64 most, i64 rows,
                   i64 step, float *to) {
  memset(to, 0, SIDE * STEP * sizeof(float));
  for (i64 at = start; at < start + width; run++) {
    const i64 some = least(start + width, run->start + run->width) - at;
    for (i64 r = 0; r < rows; r++)
      memcpy(to + r * step + (at - start),
             run->at + place[run->part * most + r] + (at - run->start), (size_t)some * sizeof(float));
    at += some;
  }
}

constexpr i64 AMX_BLOCK = 2 * STEP; // entries added up before they are added to the sum of all: what
                                    // a tile is made of stays in the first cache

/* As `product_block`, by AMX; false if a result is no number. pack_a(from, some, to) packs all rows,
   [tile][step][SPLIT], and pack_b(panel, from, some, to) a panel, [step][2][SPLIT], of entries `from`
   to `from + some`, 32 a step. The sums of a group of panels stay in the second cache until they
   are whole. */
template <typename A, typename B>
static bool amx_block(i64 rows, i64 depth, const Panel *panel, i64 panels, const i64 *place,
                      bool streams, const Packed &room, A pack_a, B pack_b) {
  alignas(64) float made[2][STEP * STEP];
  bits most = {};
  const i64 tall = parts_of(rows, SIDE), tiles = parts_of(rows, STEP);
  const i64 of_block = tall * (AMX_BLOCK / STEP) * SPLIT * TILE_FLOATS;
  const bool fits = of_block * parts_of(depth, AMX_BLOCK) <= ROOM_A; // all of a: packed once
  tiles_begin();
  for (i64 p = 0; p < panels; p += AMX_PANELS) {
    const i64 count = least(AMX_PANELS, panels - p);
    for (i64 from = 0; from < depth; from += AMX_BLOCK) {
      const i64 some = least(AMX_BLOCK, depth - from), steps = parts_of(some, STEP);
      const i64 a_step = steps * SPLIT * TILE_FLOATS;
      float *const packed = room.a + (fits ? from / AMX_BLOCK * of_block : 0);
      if (p == 0 || !fits) pack_a(from, some, packed);
      for (i64 q = 0; q < count; q++) pack_b(panel[p + q], from, some, room.b + q * 2 * a_step);
      /* A tile is added to its sum, or in the last block written where it belongs. */
      const auto finish = [&](i64 index) {
        const float *const part = made[index % 2];
        float *const sum = room.c + index * STEP * STEP;
        const i64 row = index % tiles * STEP, left = least(STEP, rows - row);
        if (from + some < depth) {
          for (i64 at = 0; at < left * STEP; at += SIDE)
            store(sum + at, from > 0 ? load(sum + at) + load(part + at) : load(part + at));
          return;
        }
        const Panel &to = panel[p + index / tiles];
        for (i64 v = 0; v < 2 && to.width[v] > 0; v++)
          for (i64 r = 0; r < left; r++) {
            const i64 at = r * STEP + v * SIDE;
            const vec value = from > 0 ? load(sum + at) + load(part + at) : load(part + at);
            const bits size = (bits)value & 0x7fffffff;
            most = size > most ? size : most;
            write(to.to[v] + place[to.part[v] * MOST_ROWS + row + r], value, to.width[v],
                  streams ? STREAMS : WRITES);
          }
      };
      for (i64 index = 0; index < count * tiles; index++) {
        const float *const a = packed + index % tiles * 2 * a_step;
        const float *const b = room.b + index / tiles * 2 * a_step;
        const auto before = [&]() HERE {
          if (index > 0) finish(index - 1);
        };
        if (rows - index % tiles * STEP > SIDE)
          amx_tile<2>(a, a_step, b, steps, made[index % 2], before);
        else
          amx_tile<1>(a, a_step, b, steps, made[index % 2], before);
      }
      finish(count * tiles - 1);
    }
  }
  tiles_end();
  bool finite = true;
  for (int lane = 0; lane < LANES; lane++) finite = finite && most[lane] < 0x7f800000;
  return finite;
}
#endif

/* y = x @ weight, or x @ weight^T, of matrices in parts; weight is [channels of x, of y], or
   transposed, and contiguous. */
template <typename Pool>
static int product(const Pool &pool, i64 axes, const i64 *shape, const Parts &x_parts,
                   const float *weight, bool transposed, const Parts &y_parts) {
  const Matrix x = matrix_of(axes, shape, x_parts), y = matrix_of(axes, shape, y_parts);
  i64 panels = 0;
  float *line = nullptr, *const room = room_for(pool.threads, &line);
  Panel *const panel = y.run ? panels_of(y, &panels) : nullptr;
  i64 *const places = zeros<i64>(pool.threads * MOST_ROWS * (x.parts + y.parts));
  const bool enough = x.run && panel && room && places;
  /* Threads share the rows, or if there are few the channels: each packs what they do not share. */
  const bool few = x.rows < y.channels && panels >= pool.threads;
  const bool by_amx = x.rows > MOST_FEW && amx_is_there();
  const i64 most = by_amx ? AMX_ROWS : MOST_ROWS, side = by_amx ? STEP : ROWS;
  const i64 length = rows_at_once(x.rows, few ? 1 : pool.threads, most, side);
  const i64 shares = few ? pool.threads : 1;
  const auto pack_weight = [&](const Panel &p, i64 from, i64 some, float *to) {
    const float *row[2] = {weight + from * y.channels + p.start[0],
                           weight + from * y.channels + p.start[1]};
    if (!transposed && x.rows <= MOST_FEW && p.width[0] == LANES && p.width[1] == LANES)
      return Lines{row[0], y.channels};
    if (!transposed)
      for (i64 k = 0; k < some; k++, row[0] += y.channels, row[1] += y.channels) {
        each<2>([&](auto v) HERE { __builtin_prefetch(row[v] + PANEL); }); // the next panel's
        pack_panel(row, p.width, to + k * PANEL);
      }
    else
      for (i64 v = 0; v < 2; v++) {
        const float *lies[LANES] = {};
        for (i64 r = 0; r < p.width[v]; r++) lies[r] = weight + (p.start[v] + r) * x.channels + from;
        pack_rows(lies, p.width[v], some, PANEL, to + v * LANES);
      }
    return Lines{to, PANEL};
  };
  if (enough && x.rows > 0)
    pool.run(parts_of(x.rows, length) * shares, [&](i64 item, i64 thread) {
      const i64 start = item / shares * length, rows = least(length, x.rows - start);
      const i64 share = item % shares;
      const i64 first = share * panels / shares, last = (share + 1) * panels / shares;
      i64 *const of_x = places + thread * MOST_ROWS * (x.parts + y.parts);
      i64 *const of_y = of_x + MOST_ROWS * x.parts;
      places_of(x, start, rows, MOST_ROWS, of_x), places_of(y, start, rows, MOST_ROWS, of_y);
      const auto pack_x = [&](i64 from, i64 some, float *to) {
        /* In order, since packing writes a little too far. */
        for (i64 row = 0; row < rows; row += ROWS)
          for (i64 i = 0; i < x.runs; i++) {
            const Run &run = x.run[i];
            const i64 a = run.start > from ? run.start : from;
            const i64 b = least(run.start + run.width, from + some);
            if (a >= b) continue;
            const float *lies[LANES] = {};
            const i64 left = least(ROWS, rows - row);
            for (i64 r = 0; r < left; r++)
              lies[r] = run.at + of_x[run.part * MOST_ROWS + row + r] + (a - run.start);
            pack_rows(lies, left, b - a, ROWS, to + row * some + (a - from) * ROWS);
          }
      };
      float *const mine = line + thread * ROOM;
      const Packed here{mine, mine + ROOM_A, mine + ROOM_A + ROOM_B};
#if SYMCOMPILE_AMX
      const auto pack_x_tiles = [&](i64 from, i64 some, float *to) {
        const Run *first = x.run;
        while (first->start + first->width <= from) first++;
        for (i64 row = 0; row < rows; row += SIDE) {
          const i64 left = least(SIDE, rows - row);
          const Run *run = first;
          for (i64 k = from; k < from + some; k += STEP, to += SPLIT * TILE_FLOATS) {
            while (run->start + run->width <= k) run++;
            const float *lies[SIDE];
            alignas(64) float together[SIDE * STEP];
            if (left == SIDE && k + STEP <= run->start + run->width) {
              const i64 *const place = of_x + run->part * MOST_ROWS + row;
              for (i64 r = 0; r < SIDE; r++) lies[r] = run->at + (k - run->start) + place[r];
            } else {
              gather(run, k, least(STEP, from + some - k), of_x + row, MOST_ROWS, left, STEP, together);
              for (i64 r = 0; r < SIDE; r++) lies[r] = together + r * STEP;
            }
            pack_tile<false>([&](i64 r, i64 half) HERE { return load(lies[r] + half * SIDE); }, to);
          }
        }
      };
      const auto pack_weight_tiles = [&](const Panel &p, i64 from, i64 some, float *to) {
        for (i64 k = 0; k < some; k += STEP)
          for (i64 v = 0; v < 2; v++, to += SPLIT * TILE_FLOATS)
            if (transposed)
              pack_tile<true>(
                  [&](i64 r, i64 half) HERE {
                    const i64 at = k + half * SIDE;
                    if (r >= p.width[v] || at >= some) return vec{};
                    return load(weight + (p.start[v] + r) * x.channels + from + at, some - at);
                  },
                  to);
            else
              pack_tile<false>(
                  [&](i64 r, i64 half) HERE {
                    const i64 at = k + half * SIDE + r;
                    if (at >= some || p.width[v] <= 0) return vec{};
                    const float *const lies = weight + (from + at) * y.channels + p.start[v];
                    __builtin_prefetch(lies + PANEL); // the next panel's
                    return load(lies, p.width[v]);
                  },
                  to);
      };
      if (by_amx &&
          amx_block(rows, x.channels, panel + first, last - first, of_y, false,
                    here, pack_x_tiles, pack_weight_tiles))
        return;
#endif
      const Shape of = x.rows > MOST_FEW ? Shape{BLOCK, PANELS} : transposed ? FEW_ROWS_TRANSPOSED : FEW_ROWS;
      product_block(rows, x.channels, of, panel + first, last - first, of_y, false, here, pack_x,
                    pack_weight);
    });
  free(x.run), free(y.run), free(panel), free(room), free(places);
  return !enough;
}

/* weight = x^T g, of matrices in parts: [channels of x, of g]. Products of few rows are written past
   the caches. */
template <typename Pool>
static int product_back(const Pool &pool, i64 axes, const i64 *shape, const Parts &x_parts,
                        const Parts &g_parts, float *weight) {
  constexpr i64 BLOCK_ROWS = 2 * BLOCK, MOST_CHANNELS = (MOST_ROWS / 2 / ROWS) * ROWS;
  const Matrix x = matrix_of(axes, shape, x_parts), g = matrix_of(axes, shape, g_parts);
  i64 panels = 0;
  float *line = nullptr, *const room = room_for(pool.threads, &line);
  Panel *const panel = g.run ? panels_of(g, &panels) : nullptr;
  const i64 of_thread = BLOCK_ROWS * (x.parts + g.parts) + MOST_ROWS;
  i64 *const places = zeros<i64>(pool.threads * of_thread);
  const bool enough = x.run && panel && room && places;
  const bool by_amx = x.rows > MOST_FEW && amx_is_there();
  const i64 most = by_amx ? AMX_CHANNELS : MOST_CHANNELS, side = by_amx ? SIDE : ROWS;
  const i64 length = rows_at_once(x.channels, pool.threads, most, side);
  bool streams = g.channels % LANES == 0 && (uintptr_t)weight % (LANES * sizeof(float)) == 0;
  for (i64 i = 0; enough && i < panels; i++)
    for (i64 v = 0; v < 2; v++) {
      panel[i].to[v] = weight + panel[i].start[v], panel[i].part[v] = 0;
      streams = streams && panel[i].start[v] % LANES == 0;
    }
  if (enough && x.channels > 0)
    pool.run(parts_of(x.channels, length), [&](i64 item, i64 thread) {
      const i64 start = item * length, channels = least(length, x.channels - start);
      i64 *const of_x = places + thread * of_thread, *const of_g = of_x + BLOCK_ROWS * x.parts;
      i64 *const of_weight = of_g + BLOCK_ROWS * g.parts;
      for (i64 k = 0; k < channels; k++) of_weight[k] = (start + k) * g.channels;
      const auto pack_x = [&](i64 from, i64 some, float *to) {
        places_of(x, from, some, BLOCK_ROWS, of_x), places_of(g, from, some, BLOCK_ROWS, of_g);
        i64 i = 0; // the run of a channel
        for (i64 k = 0; k < channels; k++) {
          while (x.run[i].start + x.run[i].width <= start + k) i++;
          const Run &run = x.run[i];
          const float *const lies = run.at + (start + k - run.start);
          const i64 *const place = of_x + run.part * BLOCK_ROWS;
          const i64 left = run.start + run.width - (start + k);
          float *const tile = to + k / ROWS * ROWS * some + k % ROWS;
          if (k % ROWS == 0 && left >= ROWS && channels - k >= ROWS) {
            for (i64 row = 0; row < some; row++)
              memcpy(tile + row * ROWS, lies + place[row], ROWS * sizeof(float));
            k += ROWS - 1;
          } else
            for (i64 row = 0; row < some; row++) tile[row * ROWS] = lies[place[row]];
        }
      };
      const auto pack_g = [&](const Panel &p, i64, i64 some, float *to) {
        const i64 *const first = of_g + p.source[0] * BLOCK_ROWS;
        const i64 *const second = of_g + p.source[1] * BLOCK_ROWS;
        for (i64 row = 0; row < some; row++) {
          const float *const lies[2] = {p.from[0] + first[row], p.from[1] + second[row]};
          pack_panel(lies, p.width, to + row * PANEL);
        }
        return Lines{to, PANEL};
      };
      float *const mine = line + thread * ROOM;
      const Packed here{mine, mine + ROOM_A, mine + ROOM_A + ROOM_B};
#if SYMCOMPILE_AMX
      const auto pack_x_tiles = [&](i64 from, i64 some, float *to) {
        places_of(x, from, some, BLOCK_ROWS, of_x);
        const Run *run = x.run;
        for (i64 k = start; k < start + channels; k += SIDE) {
          while (run->start + run->width <= k) run++;
          const i64 width = least(SIDE, start + channels - k);
          for (i64 row = 0; row < some; row += STEP, to += SPLIT * TILE_FLOATS) {
            const float *lies[STEP];
            alignas(64) float together[STEP * SIDE];
            if (k + SIDE <= run->start + run->width && row + STEP <= some) {
              const i64 *const place = of_x + run->part * BLOCK_ROWS + row;
              for (i64 r = 0; r < STEP; r++) lies[r] = run->at + (k - run->start) + place[r];
            } else {
              gather(run, k, width, of_x + row, BLOCK_ROWS, least(STEP, some - row), SIDE, together);
              for (i64 r = 0; r < STEP; r++) lies[r] = together + r * SIDE;
            }
            pack_tile<true>([&](i64 r, i64 half) HERE { return load(lies[r + half * SIDE]); }, to);
          }
        }
      };
      i64 placed = -1;
      const auto pack_g_tiles = [&](const Panel &p, i64 from, i64 some, float *to) {
        if (placed != from) places_of(g, placed = from, some, BLOCK_ROWS, of_g);
        for (i64 row = 0; row < some; row += STEP)
          for (i64 v = 0; v < 2; v++, to += SPLIT * TILE_FLOATS) {
            const i64 *const place = of_g + p.source[v] * BLOCK_ROWS + row;
            pack_tile<false>(
                [&](i64 r, i64 half) HERE {
                  const i64 at = half * SIDE + r;
                  if (row + at >= some || p.width[v] <= 0) return vec{};
                  return load(p.from[v] + place[at], p.width[v]);
                },
                to);
          }
      };
      if (by_amx &&
          amx_block(channels, x.rows, panel, panels, of_weight, streams, here,
                    pack_x_tiles, pack_g_tiles))
        return;
#endif
      product_block(channels, x.rows, Shape{BLOCK_ROWS, PANELS / 2}, panel, panels, of_weight, streams,
                    here, pack_x, pack_g);
    });
  free(x.run), free(g.run), free(panel), free(room), free(places);
  return !enough;
}
