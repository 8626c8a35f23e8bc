/* Vectors of a processor, of float32: how they are read, written and turned, all their lanes or the
   first few. C++17, and the vectors of GCC and Clang. */

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16;
#elif defined(__AVX2__)
#include <immintrin.h>
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

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

/* Past the caches: what is overwritten whole need not be read first. Others see it after a fence. */
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

/* Zeros, to be freed; null where there is no memory. */
template <typename T>
static T *zeros(i64 count) {
  return (T *)calloc((size_t)count + 1, sizeof(T));
}
