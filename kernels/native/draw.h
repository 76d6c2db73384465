// The random draw: by what the gradients of a run of elements are multiplied, zero for those that are not kept.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

constexpr std::uint64_t MULTIPLIERS[2] = {0xD2511F53, 0xCD9E8D57};
constexpr std::uint64_t WEYL[2] = {0x9E3779B9, 0xBB67AE85};
constexpr std::uint64_t LOW_HALF = 0xffffffff;
constexpr std::uint64_t SIGN = 0x80000000;

// A vector holds one word of LANES / 2 blocks of four words; several vectors hide the latency of the multiplications.
constexpr int DRAW_VECTORS = LANES >= 16 ? 4 : 2;
constexpr int VECTOR_BLOCKS = LANES / 2;
constexpr int DRAW_ELEMENTS = DRAW_VECTORS * 4 * VECTOR_BLOCKS;

inline std::uint64_t multiply_low_halves(std::uint64_t a, std::uint64_t b) { return (a & LOW_HALF) * (b & LOW_HALF); }

// A draw with its key schedule.
struct KeyedDraw {
  const Draw& draw;
  U64 keys[PHILOX_ROUNDS][2];

  explicit KeyedDraw(const Draw& draw) : draw(draw) {
    for (std::uint64_t round = 0; round < PHILOX_ROUNDS; round++)
      for (int half = 0; half < 2; half++)
        keys[round][half] = U64{} + ((draw.key[half] + round * WEYL[half]) & LOW_HALF);
  }
};

// Philox4x32 (Salmon et al., SC 2011, section 4.2) on the lower halves of the words of `count` counters. The upper
// halves are ignored, and hold nothing of use afterwards.
template <int count>
inline void philox(U64 (&c)[count][4], const U64 (&keys)[PHILOX_ROUNDS][2]) {
#pragma GCC unroll 8
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
      U64 product0 = multiply_low_halves(c[i][0], U64{} + MULTIPLIERS[0]);
      U64 product1 = multiply_low_halves(c[i][2], U64{} + MULTIPLIERS[1]);
      c[i][0] = (product1 >> 32) ^ c[i][1] ^ keys[round][0];
      c[i][2] = (product0 >> 32) ^ c[i][3] ^ keys[round][1];
      c[i][1] = product1;
      c[i][3] = product0;
    }
  }
}

// Lane i of a vector belongs to block block_of_lane(i): the order that even_lanes and odd_lanes undo.
constexpr int block_of_lane(int lane) { return lane / 2 + (lane & 1) * (LANES / 4); }

inline U64 look_up(const std::uint64_t* table, const std::uint8_t* codes) {
#define AT(lane) table[codes[4 * block_of_lane(lane)]]
#if defined(__AVX512F__)
  return U64{AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7)};
#elif defined(__AVX2__)
  return U64{AT(0), AT(1), AT(2), AT(3)};
#else
  return U64{AT(0), AT(1)};
#endif
#undef AT
}

inline U64 block_numbers(std::uint64_t first) {
  constexpr auto at = [](int lane) { return static_cast<std::uint64_t>(block_of_lane(lane)); };
#if defined(__AVX512F__)
  return first + U64{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
#elif defined(__AVX2__)
  return first + U64{at(0), at(1), at(2), at(3)};
#else
  return first + U64{at(0), at(1)};
#endif
}

// The lower halves of a beside those of b, and the upper halves.
inline U64 low_halves(U64 a, U64 b) { return (a & LOW_HALF) | b << 32; }
inline U64 high_halves(U64 a, U64 b) { return a >> 32 | (b & ~LOW_HALF); }

// Factors of the DRAW_ELEMENTS elements that begin with block `first`.
inline void draw_vectors(const KeyedDraw& keyed, std::uint64_t first, const std::uint8_t* codes, float* factors) {
  const Draw& draw = keyed.draw;
  U64 c[DRAW_VECTORS][4];
  for (int i = 0; i < DRAW_VECTORS; i++) {
    c[i][0] = block_numbers(first + i * VECTOR_BLOCKS);
    c[i][1] = c[i][0] >> 32;
    c[i][2] = U64{} + draw.parameter_id;
    c[i][3] = U64{} + draw.number;
  }
  philox(c, keyed.keys);
  for (int i = 0; i < DRAW_VECTORS; i++) {
    U64 factor[2];
    for (int half = 0; half < 2; half++) {
      U64 entry0 = look_up(draw.table, codes + 2 * half), entry1 = look_up(draw.table, codes + 2 * half + 1);
      U32 word = (U32)low_halves(c[i][2 * half], c[i][2 * half + 1]) ^ (std::uint32_t)SIGN;
      I32 kept = (I32)word < (I32)high_halves(entry0, entry1);
      factor[half] = (U64)(kept & (I32)low_halves(entry0, entry1));
    }
    U64 low = even_lanes(factor[0], factor[1]), high = odd_lanes(factor[0], factor[1]);
    std::memcpy(factors, &low, sizeof low);
    std::memcpy(factors + LANES, &high, sizeof high);
    codes += 2 * LANES;
    factors += 2 * LANES;
  }
}

inline float scalar_factor(const KeyedDraw& keyed, std::uint64_t element, std::uint8_t code) {
  U64 c[1][4] = {{U64{} + (element >> 2), U64{} + (element >> 34), U64{} + keyed.draw.parameter_id,
                  U64{} + keyed.draw.number}};
  philox(c, keyed.keys);
  std::uint64_t entry = keyed.draw.table[code];
  std::uint32_t threshold = static_cast<std::uint32_t>(entry >> 32) ^ SIGN;
  std::uint32_t rescaling = static_cast<std::uint32_t>(entry);
  float factor;
  std::memcpy(&factor, &rescaling, sizeof factor);
  return static_cast<std::uint32_t>(c[0][element & 3][0]) < threshold ? factor : 0.0f;
}

// Factors of `count` elements that lie side by side in the whole parameter, the first of them `element`.
inline void draw_run(const KeyedDraw& keyed, std::uint64_t element, std::int64_t count, const std::uint8_t* codes,
                     float* factors) {
  for (; count > 0 && element % 4 != 0; element++, count--) *factors++ = scalar_factor(keyed, element, *codes++);
  for (; count >= DRAW_ELEMENTS; element += DRAW_ELEMENTS, count -= DRAW_ELEMENTS) {
    draw_vectors(keyed, element / 4, codes, factors);
    codes += DRAW_ELEMENTS;
    factors += DRAW_ELEMENTS;
  }
  if (count > 0) {
    std::uint8_t padded_codes[DRAW_ELEMENTS] = {};
    float padded_factors[DRAW_ELEMENTS];
    std::memcpy(padded_codes, codes, count);
    draw_vectors(keyed, element / 4, padded_codes, padded_factors);
    std::memcpy(factors, padded_factors, count * sizeof(float));
  }
}

// Factors of local elements begin .. begin + count - 1.
inline void draw_factors(const KeyedDraw& keyed, std::int64_t begin, std::int64_t count, const std::uint8_t* codes,
                         float* factors) {
  const Draw& draw = keyed.draw;
  std::int64_t row = begin / draw.inner_length, column = begin % draw.inner_length;
  for (; count > 0; row++, column = 0) {
    std::int64_t in_row = draw.inner_length - column < count ? draw.inner_length - column : count;
    draw_run(keyed, draw.first_index + row * draw.outer_stride + column, in_row, codes, factors);
    codes += in_row;
    factors += in_row;
    count -= in_row;
  }
}

}  // namespace
