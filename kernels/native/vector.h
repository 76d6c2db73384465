// Vectors of LANES float32 or uint32, or LANES / 2 uint64, of the instruction set for which the including file is
// compiled. Arithmetic is written with the operators of GCC's vector extension, which Clang shares; what they cannot
// express, or what compilers make badly of it, stands here per instruction set.
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
typedef std::int64_t I64 __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t U16 __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
  std::uint16_t bits;
};

template <class T>
constexpr float LARGEST = 3.40282346638528859812e38f;
template <>
constexpr float LARGEST<bfloat16> = 3.38953138925153547591e38f;

inline F32 splat(float value) { return value - F32{}; }

inline I32 not_nan(F32 x) { return x == x; }

inline I32 finite(F32 x) {
  return ((I32)x & 0x7f800000) != 0x7f800000;
}

inline F32 square_root(F32 x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(x);
#elif defined(__aarch64__)
  return vsqrtq_f32(x);
#else
  for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline F32 load(const float* from) {
  F32 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, F32 x) { std::memcpy(to, &x, sizeof x); }

inline F32 load(const bfloat16* from) {
  U16 bits;
  std::memcpy(&bits, from, sizeof bits);
  return (F32)(__builtin_convertvector(bits, U32) << 16);
}

// Round to nearest, ties to even; the bits of the bfloat16 in the upper half, zeros in the lower.
inline F32 round_to_bfloat16(F32 x) {
  U32 bits = (U32)x;
  U32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (F32)((x == x ? rounded : U32{} + 0x7fc00000) & 0xffff0000);
}

inline void store(bfloat16* to, F32 x) {
  U16 bits = __builtin_convertvector((U32)round_to_bfloat16(x) >> 16, U16);
  std::memcpy(to, &bits, sizeof bits);
}

inline F32 round_to(const float*, F32 x) { return x; }
inline F32 round_to(const bfloat16*, F32 x) { return round_to_bfloat16(x); }

// The 64-bit products of the lower halves of the lanes.
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

// Lane 2i of a beside lane 2i of b, and lane 2i + 1 of a beside lane 2i + 1 of b.
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
