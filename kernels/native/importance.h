// Accumulation of the importance scores.
#pragma once

#include "vector.h"

namespace {

// fl(score + fl(g * g)), saturating; a gradient that is not finite adds nothing. A score that is NaN stays NaN.
inline F32 accumulated(F32 score, F32 g, I32 g_is_finite) {
  F32 sum = score + (F32)(g_is_finite & (I32)(g * g));
  return sum > LARGEST<float> ? splat(LARGEST<float>) : sum;
}

template <class T>
void accumulate_importance(float* importance, const void* grad, std::int64_t begin, std::int64_t end) {
  const T* grads = static_cast<const T*>(grad);
  std::int64_t i = begin;
  for (; i + LANES <= end; i += LANES) {
    F32 g = load(grads + i);
    store(importance + i, accumulated(load(importance + i), g, finite(g)));
  }
  if (i < end) {
    T padded_grads[LANES] = {};
    float padded_scores[LANES] = {};
    std::memcpy(padded_grads, grads + i, (end - i) * sizeof(T));
    std::memcpy(padded_scores, importance + i, (end - i) * sizeof(float));
    F32 g = load(padded_grads);
    store(padded_scores, accumulated(load(padded_scores), g, finite(g)));
    std::memcpy(importance + i, padded_scores, (end - i) * sizeof(float));
  }
}

}  // namespace
