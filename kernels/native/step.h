// One pass over a parameter: accumulate importance, draw, rescale, AdamW.
#pragma once

#include "draw.h"
#include "importance.h"
#include "kernels.h"
#include "vector.h"

namespace {

// Elements between draw and update: few enough for their factors to stay in the first-level cache.
constexpr int BLOCK = 256;

// Pointers to the elements of a block. T: dtype of parameter and gradient, M: of the moments.
template <class T, class M>
struct Block {
  T* param;
  const T* grad;
  M *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
  float* importance;
};

// The scalars of a step in all lanes.
struct Scalars {
  F32 decay, lerp_weight, beta2, one_minus_beta2, denominator_factor, eps, negative_step_size;
  I32 lerp_from_gradient, sign;

  explicit Scalars(const AdamW& adamw)
      : decay(splat(adamw.decay)),
        lerp_weight(splat(adamw.lerp_weight)),
        beta2(splat(adamw.beta2)),
        one_minus_beta2(splat(adamw.one_minus_beta2)),
        denominator_factor(splat(adamw.denominator_factor)),
        eps(splat(adamw.eps)),
        negative_step_size(splat(-adamw.step_size)),
        lerp_from_gradient(I32{} - adamw.lerp_from_gradient),
        sign((I32)(U32{} + (adamw.maximize ? 0x80000000 : 0))) {}
};

// g * factor, saturating at the range of T; zero where the factor is. A gradient that is not finite passes.
template <class T>
inline F32 selected(F32 g, F32 factor, I32 g_is_finite) {
  F32 scaled = g * factor, largest = splat(LARGEST<T>);
  scaled = scaled < largest ? scaled : largest;
  scaled = scaled > -largest ? scaled : -largest;
  scaled = round_to(static_cast<const T*>(nullptr), g_is_finite ? scaled : g);
  return factor != 0 ? scaled : F32{};
}

// Updates `count` elements, a multiple of LANES. Null factors: every gradient is taken as it is.
template <class T, class M>
inline void update(const Block<T, M>& block, const float* factors, const Scalars& scalars, int count) {
  for (int i = 0; i < count; i += LANES) {
    F32 g = load(block.grad + i);
    I32 g_is_finite = finite(g);
    if (block.importance != nullptr)
      store(block.importance + i, accumulated(load(block.importance + i), g, g_is_finite));
    if (factors != nullptr) g = selected<T>(g, load(factors + i), g_is_finite);
    g = (F32)((I32)g ^ scalars.sign);

    F32 exp_avg = load(block.exp_avg + i);
    exp_avg = (scalars.lerp_from_gradient ? g : exp_avg) + scalars.lerp_weight * (g - exp_avg);
    F32 exp_avg_sq = load(block.exp_avg_sq + i) * scalars.beta2 + scalars.one_minus_beta2 * g * g;
    store(block.exp_avg + i, exp_avg);
    store(block.exp_avg_sq + i, exp_avg_sq);
    F32 second_moment = exp_avg_sq;
    if (block.max_exp_avg_sq != nullptr) {  // the larger of the two; NaN if one of them is
      F32 maximum = load(block.max_exp_avg_sq + i);
      second_moment = maximum > exp_avg_sq || maximum != maximum ? maximum : exp_avg_sq;
      store(block.max_exp_avg_sq + i, second_moment);
    }
    F32 denominator = square_root(second_moment) * scalars.denominator_factor + scalars.eps;
    store(block.param + i, load(block.param + i) * scalars.decay + scalars.negative_step_size * exp_avg / denominator);
  }
}

// Updates fewer than LANES elements, by way of padded copies.
template <class T, class M>
inline void update_tail(const Block<T, M>& block, const float* factors, const Scalars& scalars, int count) {
  T param[LANES] = {}, grad[LANES] = {};
  M exp_avg[LANES] = {}, exp_avg_sq[LANES] = {}, max_exp_avg_sq[LANES] = {};
  float importance[LANES] = {};
  Block<T, M> padded = {param, grad, exp_avg, exp_avg_sq, nullptr, nullptr};
  auto copy = [count](auto* to, const auto* from) { std::memcpy(to, from, count * sizeof *from); };
  copy(param, block.param);
  copy(grad, block.grad);
  copy(exp_avg, block.exp_avg);
  copy(exp_avg_sq, block.exp_avg_sq);
  if (block.max_exp_avg_sq != nullptr) copy(padded.max_exp_avg_sq = max_exp_avg_sq, block.max_exp_avg_sq);
  if (block.importance != nullptr) copy(padded.importance = importance, block.importance);
  update(padded, factors, scalars, LANES);
  copy(block.param, param);
  copy(block.exp_avg, exp_avg);
  copy(block.exp_avg_sq, exp_avg_sq);
  if (block.max_exp_avg_sq != nullptr) copy(block.max_exp_avg_sq, max_exp_avg_sq);
  if (block.importance != nullptr) copy(block.importance, importance);
}

template <class T, class M>
void step(const Parameter& p, std::int64_t begin, std::int64_t end) {
  const Scalars scalars(p.adamw);
  const KeyedDraw keyed(p.draw);
  auto at = [](auto* pointer, std::int64_t i) { return pointer == nullptr ? nullptr : pointer + i; };
  alignas(64) float factors[BLOCK];
  for (std::int64_t i = begin; i < end; i += BLOCK) {
    const int count = static_cast<int>(end - i < BLOCK ? end - i : BLOCK), whole = count - count % LANES;
    if (p.rank_code != nullptr) draw_factors(keyed, i, count, p.rank_code + i, factors);
    auto block = [&](std::int64_t first) {
      return Block<T, M>{static_cast<T*>(p.param) + first, static_cast<const T*>(p.grad) + first,
                         static_cast<M*>(p.exp_avg) + first, static_cast<M*>(p.exp_avg_sq) + first,
                         at(static_cast<M*>(p.max_exp_avg_sq), first), at(p.importance, first)};
    };
    const float* block_factors = p.rank_code != nullptr ? factors : nullptr;
    update(block(i), block_factors, scalars, whole);
    if (whole < count) {
      for (int j = count; j < whole + LANES; j++) factors[j] = 0;
      update_tail(block(i + whole), at(block_factors, whole), scalars, count - whole);
    }
  }
}

}  // namespace
