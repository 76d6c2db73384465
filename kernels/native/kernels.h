// What the code compiled for one instruction set offers to the rest: a table of functions, and what they take.
#pragma once

#include <cstdint>

#include "fields.h"

constexpr int RANK_CODES = 256;
constexpr int PHILOX_ROUNDS = 7;

// As numbered in library.py.
enum Dtype { FLOAT32, BFLOAT16, DTYPES };

// What of a step is rounded stochastically: nothing, whatever is bfloat16, or besides scores that are bfloat16, where
// AdamW::rounds_values says of the rest.
enum Rounding { TO_NEAREST, STOCHASTIC, SCORES_TOO, ROUNDINGS };

// Threshold and rescaling factor of each rank code, in two layouts.
struct SelectionTable {
  // Threshold with its highest bit flipped, so that a signed comparison orders it, above the bits of the factor.
  std::uint64_t pairs[RANK_CODES];
  // Their bytes, lowest first.
  alignas(64) std::uint8_t threshold_bytes[4][RANK_CODES];
  alignas(64) std::uint8_t factor_bytes[4][RANK_CODES];
  float drop_probabilities[RANK_CODES];  // 1 - p
};

// What a draw is for, in the highest bit of the block number's 64, of which elements of a parameter take 61 at most.
enum Purpose : std::uint32_t { FOR_MASKS = 0, FOR_ROUNDING = 1u << 31 };

// The draw of one parameter in one step. Local element j is element
// first_index + (j / inner_length) * outer_stride + j % inner_length of the whole parameter.
struct Draw {
  const SelectionTable* table;
  std::uint32_t key[2];
  std::uint32_t parameter_id, draw_number;
  std::int64_t first_index, inner_length, outer_stride;
};

// The scalars of AdamW in one step, each rounded once to float32.
struct AdamW {
  float decay;               // 1 - lr * weight_decay
  float lerp_weight;         // 1 - beta1, or -beta1 if the interpolation starts at the gradient
  bool lerp_from_gradient;   // 1 - beta1 >= 0.5, as in torch.lerp
  float beta2, one_minus_beta2;
  float denominator_factor;  // 1 / sqrt(1 - beta2^step)
  float eps;
  float negative_step_size;  // -lr / (1 - beta1^step)
  float gradient_factor;
  bool maximize;
  bool masks_update;               // else the gradient
  float pretrained_decay;          // lr * pretrained_decay
  const float (*decay_of_rank)[RANK_CODES];  // factor of that; null: none
  bool rounds_values;  // parameters and moments of bfloat16 stochastically
};

// A parameter with its gradient and state, by field::Tensor. Pointers to what a step does not use are null.
struct Parameter {
  void* tensors[TENSORS];
  AdamW adamw;
  Draw draw;      // of the mask
  Draw rounding;  // of the bits for stochastic rounding
};

struct Kernels {
  const char* name;
  bool (*supported)();
  // A step of local elements begin .. end - 1; by dtype of parameter and gradient, then of the moments.
  void (*step[DTYPES][DTYPES][ROUNDINGS])(const Parameter&, std::int64_t begin, std::int64_t end);
  // Adds the squares of `count` gradients; by their dtype.
  void (*accumulate[DTYPES])(float* importance, const void* grad, std::int64_t count);
};

// Those in use.
extern const Kernels* kernels;

extern const Kernels kernels_avx512, kernels_avx2, kernels_portable;
