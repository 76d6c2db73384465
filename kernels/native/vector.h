// Vectors of LANES float32 or 32-bit integers, or of LANES / 2 64-bit integers, of the instruction set for which the
// including file is compiled. Arithmetic is written with the operators of GCC's vector extension, which Clang shares; here
// stands what they cannot express, or what compilers make badly of it.
//
// Everything is in an unnamed namespace: the linker must not merge functions compiled for different instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float F32 __attribute__((vector_size(4 * LANES)));
typedef std::int32_t I32 __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t U32 __attribute__((vector_size(4 * LANES)));
typedef std::uint64_t U64 __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t U16 __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
  std::uint16_t bits;
};

// The largest finite value.
template <class T>
constexpr float LARGEST = 3.40282346638528859812e38f;
template <>
constexpr float LARGEST<bfloat16> = 3.38953138925153547591e38f;

inline F32 splat(float value) { return value - F32{}; }

// ---------------------------------------------------------------------------------------------------- memory and dtypes

inline F32 load(const float* from) {
  F32 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline U32 load_wide(const std::uint16_t* from) {
  U16 numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return __builtin_convertvector(numbers, U32);
}

inline F32 load(const bfloat16* from) { return (F32)(load_wide(&from->bits) << 16); }

inline F32 rounded_to(const float*, F32 x) { return x; }

// To nearest, ties to even.
inline F32 rounded_to(const bfloat16*, F32 x) {
  const U32 bits = (U32)x, rounded = bits + 0x7fff + (bits >> 16 & 1);
  return (F32)((x == x ? rounded : U32{} + 0x7fc00000) & 0xffff0000);
}

// Whether the magnitude of one of the numbers at least is beyond that of these bits, or it is NaN.
inline bool any_beyond(std::int32_t magnitude, F32 x) {
  const I32 own = (I32)x & 0x7fffffff;
#if defined(__AVX512F__)
  return _mm512_cmpgt_epi32_mask((__m512i)own, _mm512_set1_epi32(magnitude)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)(own > magnitude)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)(own > magnitude)) != 0;
#else
  const I32 beyond = own > magnitude;
  return (beyond[0] | beyond[1] | beyond[2] | beyond[3]) != 0;
#endif
}

// The upper half of one of the two nearest numbers: 16 random bits are added below the last digit. What is beyond the
// largest number, or not finite, is rounded to nearest.
inline U32 stochastically_rounded_to(const bfloat16* to, F32 x, U32 bits) {
  constexpr std::int32_t largest = 0x7f7f0000;
  U32 rounded = (U32)x + bits;
  if (__builtin_expect(any_beyond(largest, x), false)) {
    const I32 special = ((I32)x & 0x7fffffff) > largest;
    rounded = (U32)(special ? (I32)rounded_to(to, x) : (I32)rounded);
  }
  return rounded >> 16;
}

inline void store(float* to, F32 x) { std::memcpy(to, &x, sizeof x); }

inline void store(bfloat16* to, F32 x) {
  const U16 bits = __builtin_convertvector((U32)rounded_to(to, x) >> 16, U16);
  std::memcpy(to, &bits, sizeof bits);
}

inline void store_stochastically(float* to, F32 x, U32) { store(to, x); }

inline void store_stochastically(bfloat16* to, F32 x, U32 bits) {
  const U16 rounded = __builtin_convertvector(stochastically_rounded_to(to, x, bits), U16);
  std::memcpy(to, &rounded, sizeof rounded);
}

// -------------------------------------------------------------------------------------------------------------- float32

inline I32 magnitude_bits(F32 x) { return (I32)x & 0x7fffffff; }

inline I32 is_finite(F32 x) { return magnitude_bits(x) < 0x7f800000; }

inline bool has_non_finite(F32 x) {
#if defined(__AVX512DQ__)
  return _mm512_fpclass_ps_mask(x, 0x99) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((F32)~is_finite(x)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((F32)~is_finite(x)) != 0;
#else
  const I32 finite = is_finite(x);
  return (finite[0] & finite[1] & finite[2] & finite[3]) == 0;
#endif
}

// x, or zero where it is smaller than the smallest normal number.
inline F32 without_denormals(F32 x) {
#if defined(__AVX512DQ__)
  return _mm512_maskz_mov_ps(_knot_mask16(_mm512_fpclass_ps_mask(x, 0x20)), x);
#else
  return (F32)((magnitude_bits(x) > 0x007fffff) & (I32)x);
#endif
}

// The smaller of the two; x where it is NaN.
inline F32 at_most(float limit, F32 x) {
#if defined(__AVX512F__)
  return _mm512_min_ps(splat(limit), x);
#elif defined(__AVX2__)
  return _mm256_min_ps(splat(limit), x);
#elif defined(__SSE2__)
  return _mm_min_ps(splat(limit), x);
#else
  return x > limit ? splat(limit) : x;
#endif
}

// x with its magnitude limited; x must not be NaN.
inline F32 clamped(float limit, F32 x) {
#if defined(__AVX512DQ__)
  return _mm512_range_ps(x, splat(limit), 2);
#elif defined(__AVX2__)
  return _mm256_max_ps(splat(-limit), at_most(limit, x));
#elif defined(__SSE2__)
  return _mm_max_ps(splat(-limit), at_most(limit, x));
#else
  x = at_most(limit, x);
  return x < -limit ? splat(-limit) : x;
#endif
}

inline F32 square_root(F32 x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(x);
#else
  for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// a * b + c, rounded once where the processor can, else twice.
inline F32 multiply_add(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// ------------------------------------------------------------------------------------------------------ 64-bit integers

// The products of the lower halves.
inline U64 multiply_low_halves(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (U64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// The lower halves of a, each below the lower half of b; the upper halves, likewise.
inline U64 low_halves(U64 a, U64 b) { return (a & 0xffffffff) | b << 32; }
inline U64 high_halves(U64 a, U64 b) { return a >> 32 | (b >> 32 << 32); }

// Lanes 0, 2, .. of a, each below that of b; lanes 1, 3, .., likewise.
inline U64 even_lanes(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#else
  return U64{a[0], b[0]};
#endif
}

inline U64 odd_lanes(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  return U64{a[1], b[1]};
#endif
}

}  // namespace
