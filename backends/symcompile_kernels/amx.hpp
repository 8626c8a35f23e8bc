/* Products of float32 by AMX, the matrix unit of Intel's processors, which multiplies bfloat16.

   A float is the sum of three bfloat16, and of the nine products of two such sums the six largest
   are all that float32 can tell: Henry, Tang and Heinecke, ARITH 2019, arXiv 1904.06376. The unit
   makes sixteen times what vectors do, so six products would take three eighths of the time; power
   holds it back to seven tenths.

   What is no number is left to the vectors: an infinity less its own bfloat16 is none. Below 2^-110
   the unit loses digits, since it takes what is not normal as zero. */

#pragma once

#include "vectors.hpp"

/* By GCC: Clang wants what calls its assembler to be compiled for processors with the unit alone. */
#if defined(__AVX512F__) && defined(__linux__) && defined(__x86_64__) && !defined(__clang__) && \
    __has_include(<amxbf16intrin.h>)
#define SYMCOMPILE_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define SYMCOMPILE_AMX 0
#endif

constexpr i64 SIDE = 16;       // rows and columns of a tile
constexpr i64 STEP = 2 * SIDE; // entries added up at once: tiles hold them in pairs

#if !SYMCOMPILE_AMX
static bool amx_is_there() { return false; }
#else

constexpr i64 SPLIT = 3;                  // bfloat16 that make a float
constexpr i64 TILE_FLOATS = SIDE * SIDE;  // as much memory as a tile takes

typedef uint32_t bits __attribute__((vector_size(LANES * 4)));

/* Whether the processor has the unit and the system lets this process use it; the environment
   variable SYMCOMPILE_AMX=0 says not to. */
static bool amx_is_there() {
  static const bool found = [] {
    constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;
    constexpr long ASK = 0x1023, TILE_DATA = 18; // of arch_prctl
    const char *const wanted = getenv("SYMCOMPILE_AMX");
    unsigned a, b, c, d;
    return !(wanted && !strcmp(wanted, "0")) && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (d & BF16) && (d & TILES) && syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
  }();
  return found;
}

/* Of the thread, from here on: eight tiles of 16 rows of 64 bytes. */
INLINE void tiles_begin() {
  struct alignas(64) {
    uint8_t palette, row, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape = {};
  shape.palette = 1;
  for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = SIDE;
  asm volatile("ldtilecfg %0" ::"m"(shape));
}
INLINE void tiles_end() { asm volatile("tilerelease"); }

template <int T>
INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
INLINE void tile_load(const float *from) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"((i64)64), "i"(T) : "memory");
}
template <int T>
INLINE void tile_store(float *to, i64 step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step * 4), "i"(T) : "memory");
}
template <int To, int A, int B>
INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(To), "i"(A), "i"(B));
}

/* Packs a tile for each of three bfloat16, that are rounded to nearest: 16 rows of pairs, of
   line(row, 0) and line(row, 1); or, turned, 16 columns. */
template <bool turned, typename Line>
INLINE void pack_tile(Line line, float *to) {
  each<SIDE>([&](auto i) HERE {
    vec a = line(i, 0), b = line(i, 1);
    each<SPLIT>([&](auto s) HERE {
      constexpr uint32_t HALF = s + 1 < SPLIT ? 0x8000 : 0; // the last has no more digits
      const bits low = (bits)a + HALF, high = ((bits)b + HALF) & 0xffff0000;
      store(to + s * TILE_FLOATS + i * SIDE, (vec)(low >> 16 | high));
      a -= (vec)(low & 0xffff0000), b -= (vec)high;
    });
  });
  if (turned)
    for (float *tile = to; tile < to + SPLIT * TILE_FLOATS; tile += TILE_FLOATS) {
      vec v[SIDE];
      each<SIDE>([&](auto i) HERE { v[i] = load(tile + i * SIDE); });
      turn(v);
      each<SIDE>([&](auto i) HERE { store(tile + i * SIDE, v[i]); });
    }
}

/* 16 R x 32 results, in rows of STEP: a, [R][step][SPLIT] tiles, `a_step` floats from one of R to
   the next, times b, [step][2][SPLIT] tiles. The smallest products are added up first, while
   rounding costs least. What `meanwhile` does is done while the unit works. */
template <int R, typename Meanwhile>
INLINE void amx_tile(const float *a, i64 a_step, const float *b, i64 steps, float *to,
                     Meanwhile meanwhile) {
  const auto load_a = [&](i64 k, int s) HERE {
    each<R>([&](auto r) HERE { tile_load<4 + r>(a + r * a_step + (k * SPLIT + s) * TILE_FLOATS); });
  };
  const auto load_b = [&](i64 k, int s) HERE {
    each<2>([&](auto v) HERE { tile_load<6 + v>(b + ((k * 2 + v) * SPLIT + s) * TILE_FLOATS); });
  };
  const auto multiply = [&]() HERE {
    each<R>([&](auto r) HERE {
      each<2>([&](auto v) HERE { tile_multiply<2 * r + v, 4 + r, 6 + v>(); });
    });
  };
  each<R>([&](auto r) HERE { each<2>([&](auto v) HERE { tile_zero<2 * r + v>(); }); });
  for (i64 k = 0; k < steps; k++) {
    load_a(k, 0), load_b(k, 2), multiply();
    load_b(k, 1), multiply();
    load_a(k, 1), multiply();
    load_b(k, 0), multiply();
    load_a(k, 2), multiply();
  }
  for (i64 k = 0; k < steps; k++) load_a(k, 0), load_b(k, 0), multiply();
  meanwhile();
  each<R>([&](auto r) HERE {
    each<2>([&](auto v) HERE { tile_store<2 * r + v>(to + r * SIDE * STEP + v * SIDE, STEP); });
  });
}

#endif
