// The random draw: by what each gradient is multiplied, zero where the element is not kept; and bits for rounding.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

// A vector holds one word of each of VECTOR_COUNTERS counters; VECTORS of them at a time hide the latency of the
// multiplications. Together they draw for a group of elements.
constexpr int VECTOR_COUNTERS = LANES / 2;
constexpr int VECTORS = LANES == 16 ? 4 : 2;
// Words and halves of words of a counter: so many elements have it in common, for masks and for rounding.
constexpr int WORDS = 4, HALVES = 2 * WORDS;
constexpr int GROUP = WORDS * VECTOR_COUNTERS * VECTORS;
constexpr int ROUNDING_GROUP = HALVES * VECTOR_COUNTERS * VECTORS;

constexpr std::uint64_t MULTIPLIERS[2] = {0xD2511F53, 0xCD9E8D57};
constexpr std::uint64_t WEYL[2] = {0x9E3779B9, 0xBB67AE85};

// The keys of a draw's rounds, in the lower half of every lane.
struct KeySchedule {
  U64 keys[PHILOX_ROUNDS][2];

  explicit KeySchedule(const Draw& draw) {
    for (int half = 0; half < 2; half++)
      for (int round = 0; round < PHILOX_ROUNDS; round++)
        keys[round][half] = U64{} + static_cast<std::uint32_t>(draw.key[half] + round * WEYL[half]);
  }
};

// Philox4x32 (Salmon et al., SC 2011, section 4.2) on counters in the lower halves of the lanes. The upper halves are
// ignored, and hold nothing of use afterwards.
inline void philox(U64 (&counters)[VECTORS][4], const KeySchedule& schedule) {
#pragma GCC unroll 8
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
#pragma GCC unroll 8
    for (auto& c : counters) {
      const U64 product0 = multiply_low_halves(c[0], U64{} + MULTIPLIERS[0]);
      const U64 product1 = multiply_low_halves(c[2], U64{} + MULTIPLIERS[1]);
      c[0] = product1 >> 32 ^ c[1] ^ schedule.keys[round][0];
      c[2] = product0 >> 32 ^ c[3] ^ schedule.keys[round][1];
      c[1] = product1;
      c[3] = product0;
    }
  }
}

// Lane i of a vector belongs to its counter number counter_of_lane(i): the order that even_lanes and odd_lanes undo.
constexpr std::uint64_t counter_of_lane(int lane) { return lane / 2 + lane % 2 * (LANES / 4); }

template <class Function>
inline U64 by_lane(Function f) {
#if defined(__AVX512F__)
  return U64{f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)};
#elif defined(__AVX2__)
  return U64{f(0), f(1), f(2), f(3)};
#else
  return U64{f(0), f(1)};
#endif
}

#if defined(__AVX512VBMI__)

// 64 entries of a table of 32-bit numbers that is stored by bytes, from 64 codes. Entry 4 * k + j, within its group of 16,
// comes out in group k at 4 * group + j, because unpacking works within 128 bits.
inline void look_up(const std::uint8_t (&bytes)[4][RANK_CODES], __m512i codes, __m512i (&entries)[4]) {
  const __mmask64 upper = _mm512_movepi8_mask(codes);
  __m512i found[4];
  for (int i = 0; i < 4; i++) {
    auto part = [&](int at) { return _mm512_load_si512(bytes[i] + at); };
    found[i] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(part(0), codes, part(64)),
                                      _mm512_permutex2var_epi8(part(128), codes, part(192)));
  }
  const __m512i low01 = _mm512_unpacklo_epi8(found[0], found[1]), high01 = _mm512_unpackhi_epi8(found[0], found[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(found[2], found[3]), high23 = _mm512_unpackhi_epi8(found[2], found[3]);
  entries[0] = _mm512_unpacklo_epi16(low01, low23);
  entries[1] = _mm512_unpackhi_epi16(low01, low23);
  entries[2] = _mm512_unpacklo_epi16(high01, high23);
  entries[3] = _mm512_unpackhi_epi16(high01, high23);
}

// Factors of 4 * LANES elements whose random words are those of two vectors of counters.
inline void select(const SelectionTable& table, const U64 (*words)[4], const std::uint8_t* codes, float* factors) {
  // Bytes 4 * k .. 4 * k + 3 of group g change places with those of group k, for look_up to undo.
  const __m512i order = _mm512_set_epi32(0x3f3e3d3c, 0x2f2e2d2c, 0x1f1e1d1c, 0x0f0e0d0c, 0x3b3a3938, 0x2b2a2928,
                                         0x1b1a1918, 0x0b0a0908, 0x37363534, 0x27262524, 0x17161514, 0x07060504,
                                         0x33323130, 0x23222120, 0x13121110, 0x03020100);
  const __m512i ordered = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(codes));
  __m512i thresholds[4], rescaling[4];
  look_up(table.threshold_bytes, ordered, thresholds);
  look_up(table.factor_bytes, ordered, rescaling);
  for (int i = 0; i < 4; i++) {
    const U64(&c)[4] = words[i / 2];
    const U64 low = low_halves(c[0], c[1]), high = low_halves(c[2], c[3]);
    const __m512i word = (__m512i)(i % 2 == 0 ? even_lanes(low, high) : odd_lanes(low, high));
    _mm512_storeu_si512(factors + i * LANES,
                        _mm512_maskz_mov_epi32(_mm512_cmplt_epu32_mask(word, thresholds[i]), rescaling[i]));
  }
}

constexpr int SELECTED_VECTORS = 2;

#else

// Factors of 2 * LANES elements whose random words are those of one vector of counters.
inline void select(const SelectionTable& table, const U64 (*words)[4], const std::uint8_t* codes, float* factors) {
  U64 selected[2];
  for (int half = 0; half < 2; half++) {
    auto entries = [&](int word) {
      return by_lane([&](int lane) { return table.pairs[codes[4 * counter_of_lane(lane) + word]]; });
    };
    const U64 entry0 = entries(2 * half), entry1 = entries(2 * half + 1);
    const I32 word = (I32)low_halves((*words)[2 * half], (*words)[2 * half + 1]) ^ INT32_MIN;
    selected[half] = (U64)((word < (I32)high_halves(entry0, entry1)) & (I32)low_halves(entry0, entry1));
  }
  store(factors, (F32)even_lanes(selected[0], selected[1]));
  store(factors + LANES, (F32)odd_lanes(selected[0], selected[1]));
}

constexpr int SELECTED_VECTORS = 1;

#endif

// The words of the counters from `first` on, one vector of counters after the other.
template <Purpose PURPOSE>
inline void draw_group(const Draw& draw, const KeySchedule& schedule, std::uint64_t first,
                       U64 (&words)[VECTORS][WORDS]) {
  for (int i = 0; i < VECTORS; i++) {
    const U64 counters = first + i * VECTOR_COUNTERS + by_lane(counter_of_lane);
    words[i][0] = counters;
    words[i][1] = counters >> 32 | static_cast<std::uint64_t>(PURPOSE);
    words[i][2] = U64{} + draw.parameter_id;
    words[i][3] = U64{} + draw.draw_number;
  }
  philox(words, schedule);
}

// Bits for rounding `count` elements that lie side by side in the whole parameter, the first of which takes half 0 of
// counter `first`: in memory the lower half of a word comes first. Writes whole groups. Not inlined: registers for the keys
// would be taken from the update.
__attribute__((noinline)) void draw_rounding(const Draw& draw, const KeySchedule& schedule, std::uint64_t first, int count,
                                             std::uint16_t* elements) {
#pragma GCC unroll 1
  for (int done = 0; done < count; done += ROUNDING_GROUP) {
    U64 words[VECTORS][WORDS];
    draw_group<FOR_ROUNDING>(draw, schedule, first + done / HALVES, words);
    for (int i = 0; i < VECTORS; i++) {
      const U64 low = low_halves(words[i][0], words[i][1]), high = low_halves(words[i][2], words[i][3]);
      const U64 even = even_lanes(low, high), odd = odd_lanes(low, high);
      std::uint16_t* to = elements + done + 4 * LANES * i;
      std::memcpy(to, &even, sizeof even);
      std::memcpy(to + 2 * LANES, &odd, sizeof odd);
    }
  }
}

// Factors of `count` such elements, the first of which takes word 0 of counter `first`. Reads and writes whole groups. Not
// inlined: registers for the table would be taken from the update.
__attribute__((noinline)) void draw_factors(const Draw& draw, const KeySchedule& schedule, std::uint64_t first,
                                            int count, const std::uint8_t* codes, float* factors) {
#pragma GCC unroll 1
  for (int done = 0; done < count; done += GROUP) {
    U64 words[VECTORS][WORDS];
    draw_group<FOR_MASKS>(draw, schedule, first + done / WORDS, words);
#pragma GCC unroll 1
    for (int i = 0; i < VECTORS; i += SELECTED_VECTORS)
      select(*draw.table, words + i, codes + done + 2 * LANES * i, factors + done + 2 * LANES * i);
  }
}

}  // namespace
