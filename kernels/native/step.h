// One pass over a parameter: accumulate importance, draw, rescale, AdamW.
#pragma once

#include "draw.h"
#include "kernels.h"
#include "vector.h"

namespace {

// Elements between draw and update: few enough for their factors to stay in the first-level cache.
constexpr int BLOCK = 256;
static_assert(BLOCK % GROUP == 0 && BLOCK % ROUNDING_GROUP == 0);

// fl(score + fl(g * g)), saturating; g must be finite.
template <class S>
inline F32 accumulated(F32 score, F32 g) {
  return at_most(LARGEST<S>, score + g * g);
}

inline F32 zero_where_not_finite(F32 x) { return (F32)(is_finite(x) & (I32)x); }

template <class T>
void accumulate(float* importance, const void* grad, std::int64_t count) {
  const T* grads = static_cast<const T*>(grad);
  std::int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    store(importance + i, accumulated<float>(load(importance + i), zero_where_not_finite(load(grads + i))));
  if (i < count) {
    T last_grads[LANES] = {};
    float last_scores[LANES] = {};
    std::memcpy(last_grads, grads + i, (count - i) * sizeof(T));
    std::memcpy(last_scores, importance + i, (count - i) * sizeof(float));
    store(last_scores, accumulated<float>(load(last_scores), zero_where_not_finite(load(last_grads))));
    std::memcpy(importance + i, last_scores, (count - i) * sizeof(float));
  }
}

// The scalars of a step, in all lanes.
struct Scalars {
  F32 decay, lerp_weight, beta2, one_minus_beta2, denominator_factor, eps, negative_step_size, pretrained_decay;
  F32 gradient_factor;
  I32 sign;
  bool multiplies, lerp_from_gradient, masks_update, rounds_values;
  const float (*decay_of_rank)[RANK_CODES];

  explicit Scalars(const AdamW& adamw)
      : decay(splat(adamw.decay)),
        lerp_weight(splat(adamw.lerp_weight)),
        beta2(splat(adamw.beta2)),
        one_minus_beta2(splat(adamw.one_minus_beta2)),
        denominator_factor(splat(adamw.denominator_factor)),
        eps(splat(adamw.eps)),
        negative_step_size(splat(adamw.negative_step_size)),
        pretrained_decay(splat(adamw.pretrained_decay)),
        gradient_factor(splat(adamw.gradient_factor)),
        sign(I32{} + (adamw.maximize ? INT32_MIN : 0)),
        multiplies(adamw.gradient_factor != 1),
        lerp_from_gradient(adamw.lerp_from_gradient),
        masks_update(adamw.masks_update),
        rounds_values(adamw.rounds_values),
        decay_of_rank(adamw.decay_of_rank) {}
};

// What the dtypes of fields.h are in C++. T: of parameter and gradient, M: of the moments, S: of the scores.
template <class T, class M, class S>
struct Types {
  using parameter = T;
  using moment = M;
  using score = S;
  using uint8 = std::uint8_t;
  using one_float32 = void;  // not by element
};
struct Access {
  template <class Element>
  using read = const Element;
  template <class Element>
  using written = Element;
};

// Elements of a parameter, by the names of its tensors; null: not used.
template <class T, class M, class S>
struct Elements {
#define POINTER(name, dtype, access) Access::access<typename Types<T, M, S>::dtype>* name;
  ROAST_TENSORS(POINTER)
#undef POINTER

  static Elements of(const Parameter& p, std::int64_t first) {
    Elements e;
#define SET(name, dtype, access) set(e.name, p.tensors[field::name], first);
    ROAST_TENSORS(SET)
#undef SET
    return e;
  }

 private:
  template <class Element>
  static void set(Element*& pointer, void* begin, std::int64_t first) {
    pointer = begin == nullptr ? nullptr : static_cast<Element*>(begin) + first;
  }
  static void set(void*& pointer, void*, std::int64_t) { pointer = nullptr; }
};

inline F32 looked_up(const float (&table)[RANK_CODES], const std::uint8_t* codes) {
  float entries[LANES];
  for (int lane = 0; lane < LANES; lane++) entries[lane] = table[codes[lane]];
  return load(entries);
}

// Stores what is rounded stochastically by 16 bits, if the scalars say so, where ROUNDING.
template <Rounding ROUNDING, class Element>
inline void store_value(Element* to, F32 x, U32 bits, const Scalars& scalars) {
  if (ROUNDING != TO_NEAREST && scalars.rounds_values)
    store_stochastically(to, x, bits);
  else
    store(to, x);
}

// Updates `count` elements, a multiple of LANES. `factors` of their gradients; null: each gradient is taken as it is.
// `drawn` for rounding, 16 bits each: as they are for the parameter, with their bytes exchanged for its state; not read
// TO_NEAREST.
template <Rounding ROUNDING, class T, class M, class S>
inline void update(const Elements<T, M, S>& e, int count, const float* factors, const std::uint16_t* drawn,
                   const Scalars& scalars) {
#pragma GCC unroll 1  // there are too few registers for more
  for (int i = 0; i < count; i += LANES) {
    // All loads before all stores: tensors often lie at equal offsets in their pages, and a load that follows a store to
    // an equal offset waits for it on some processors.
    F32 g = load(e.grad + i), param = load(e.param + i);
    F32 exp_avg = load(e.exp_avg + i), exp_avg_sq = load(e.exp_avg_sq + i);

    if (scalars.multiplies) g = rounded_to(e.grad, g * scalars.gradient_factor);
    F32 finite_g = g;
    const bool special = __builtin_expect(has_non_finite(g), false);
    if (special) finite_g = zero_where_not_finite(g);
    U32 own_bits{};
    if (ROUNDING != TO_NEAREST) own_bits = load_wide(drawn + i);
    const U32 bits = (own_bits << 8 | own_bits >> 8) & 0xffff;
    if (e.importance != nullptr)
      store_stochastically(e.importance + i, accumulated<S>(load(e.importance + i), finite_g), bits);
    if (factors != nullptr && !scalars.masks_update) {
      const F32 factor = load(factors + i);
      F32 scaled = clamped(LARGEST<T>, finite_g * factor);
      if (special) scaled = (is_finite(g) | (factor == 0)) ? scaled : g;  // in a kept element it passes, as in AdamW
      g = rounded_to(e.grad, scaled);
    }
    g = (F32)((I32)g ^ scalars.sign);

    exp_avg = multiply_add(scalars.lerp_weight, g - exp_avg, scalars.lerp_from_gradient ? g : exp_avg);
    // The first moment of an element that is seldom kept would soon and forever be a denormal number, on which processors
    // are slow.
    exp_avg = without_denormals(exp_avg);
    exp_avg_sq = multiply_add(scalars.one_minus_beta2 * g, g, exp_avg_sq * scalars.beta2);
    F32 second_moment = exp_avg_sq;
    if (e.max_exp_avg_sq != nullptr) {
      const F32 previous = load(e.max_exp_avg_sq + i);
      second_moment = ((previous > exp_avg_sq) | (previous != previous)) ? previous : exp_avg_sq;
      store_value<ROUNDING>(e.max_exp_avg_sq + i, second_moment, bits, scalars);
    }
    const F32 denominator = multiply_add(square_root(second_moment), scalars.denominator_factor, scalars.eps);
    const F32 step = scalars.negative_step_size * exp_avg / denominator;
    if (e.pretrained == nullptr && !scalars.masks_update) {
      param = multiply_add(param, scalars.decay, step);
    } else {
      param *= scalars.decay;
      if (e.pretrained != nullptr) {
        F32 decay = scalars.pretrained_decay;
        if (scalars.decay_of_rank != nullptr) decay *= looked_up(*scalars.decay_of_rank, e.rank_code + i);
        param = multiply_add(decay, load(e.pretrained + i) - param, param);
      }
      const F32 moved = param + step;
      param = scalars.masks_update ? ((load(factors + i) != 0) ? moved : param) : moved;
    }
    store_value<ROUNDING>(e.exp_avg + i, exp_avg, bits, scalars);
    store_value<ROUNDING>(e.exp_avg_sq + i, exp_avg_sq, bits, scalars);
    store_value<ROUNDING>(e.param + i, param, own_bits, scalars);
  }
}

// The draws of a parameter with their keys.
struct Draws {
  const Draw &mask, &rounding;
  const KeySchedule mask_schedule, rounding_schedule;

  explicit Draws(const Parameter& p)
      : mask(p.draw), rounding(p.rounding), mask_schedule(p.draw), rounding_schedule(p.rounding) {}
};

// A step of `count` elements that lie side by side in the whole parameter from element `first` on, a multiple of HALVES.
// `count` is a multiple of LANES and at most BLOCK.
template <Rounding ROUNDING, class T, class M, class S>
inline void step_block(const Elements<T, M, S>& e, int count, std::uint64_t first, const Draws& draws,
                       const Scalars& scalars) {
  alignas(64) std::uint16_t drawn[ROUNDING == TO_NEAREST ? 1 : BLOCK];
  if (ROUNDING != TO_NEAREST) draw_rounding(draws.rounding, draws.rounding_schedule, first / HALVES, count, drawn);
  if (e.rank_code == nullptr) return update<ROUNDING>(e, count, nullptr, drawn, scalars);
  const std::uint64_t counter = first / WORDS;
  alignas(64) float factors[BLOCK];
  if (count % GROUP == 0) {
    draw_factors(draws.mask, draws.mask_schedule, counter, count, e.rank_code, factors);
  } else {
    std::uint8_t whole_groups[BLOCK] = {};
    std::memcpy(whole_groups, e.rank_code, count);
    draw_factors(draws.mask, draws.mask_schedule, counter, count, whole_groups, factors);
  }
  update<ROUNDING>(e, count, factors, drawn, scalars);
}

// Copies of elements of a tensor, which come to lie `offset` elements behind an aligned address, with zeros around them.
constexpr int PART = 2 * LANES;
static_assert(PART >= HALVES);
template <class Element>
struct Copies {
  alignas(64) Element elements[PART] = {};
  Element* copy_in(const Element* original, int offset, int count) {
    if (original == nullptr) return nullptr;
    std::memcpy(elements + offset, original, count * sizeof *original);
    return elements;
  }
  void copy_out(Element* original, int offset, int count) const {
    if (original != nullptr) std::memcpy(original, elements + offset, count * sizeof *original);
  }
  void copy_out(const Element*, int, int) const {}  // of what a step only reads
};
template <>
struct Copies<void> {
  void* copy_in(const void*, int, int) { return nullptr; }
  void copy_out(void*, int, int) const {}
};

// The same for any count up to PART - offset, from element first + offset on: a block of copies.
template <Rounding ROUNDING, class T, class M, class S>
void step_part(const Elements<T, M, S>& e, int offset, int count, std::uint64_t first, const Draws& draws,
               const Scalars& scalars) {
  Elements<T, M, S> block;
#define COPY_IN(name, dtype, access)                    \
  Copies<typename Types<T, M, S>::dtype> name##_copies; \
  block.name = name##_copies.copy_in(e.name, offset, count);
  ROAST_TENSORS(COPY_IN)
#undef COPY_IN
  step_block<ROUNDING>(block, (offset + count + LANES - 1) / LANES * LANES, first, draws, scalars);
#define COPY_OUT(name, dtype, access) name##_copies.copy_out(e.name, offset, count);
  ROAST_TENSORS(COPY_OUT)
#undef COPY_OUT
}

template <Rounding ROUNDING, class T, class M, class S = float>
void step(const Parameter& p, std::int64_t begin, std::int64_t end) {
  using E = Elements<T, M, S>;
  const Scalars scalars(p.adamw);
  const Draws draws(p);
  while (begin < end) {
    // A row: elements that lie side by side in the whole parameter.
    const std::int64_t row = begin / p.draw.inner_length, column = begin % p.draw.inner_length;
    std::uint64_t element = p.draw.first_index + row * p.draw.outer_stride + column;
    std::int64_t left = p.draw.inner_length - column < end - begin ? p.draw.inner_length - column : end - begin;
    while (left > 0) {
      const int offset = element % HALVES, most = left < BLOCK ? static_cast<int>(left) : BLOCK;
      int count = most / LANES * LANES;
      if (offset == 0 && count > 0) {
        step_block<ROUNDING>(E::of(p, begin), count, element, draws, scalars);
      } else {
        count = most < PART - offset ? most : PART - offset;
        step_part<ROUNDING>(E::of(p, begin), offset, count, element - offset, draws, scalars);
      }
      begin += count;
      element += count;
      left -= count;
    }
  }
}

#define STEPS(T, M) {step<TO_NEAREST, T, M>, step<STOCHASTIC, T, M>, step<SCORES_TOO, T, M, bfloat16>}

// What one instruction set offers.
constexpr Kernels kernels_of(const char* name, bool (*supported)()) {
  return {name,
          supported,
          {{STEPS(float, float), STEPS(float, bfloat16)}, {STEPS(bfloat16, float), STEPS(bfloat16, bfloat16)}},
          {accumulate<float>, accumulate<bfloat16>}};
}
#undef STEPS

}  // namespace
