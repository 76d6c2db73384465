// What the code of each instruction set offers to the rest: a table of functions.
#pragma once

#include <cstdint>

constexpr int RANK_CODES = 256;
constexpr int PHILOX_ROUNDS = 7;

// Dtype of a tensor, as numbered by kernels/native/library.py.
enum Dtype { FLOAT32 = 0, BFLOAT16 = 1, DTYPES = 2 };

// The random draw of one parameter in one step. Local element j is element
// first_index + (j / inner_length) * outer_stride + j % inner_length of the whole parameter.
struct Draw {
  std::uint32_t key[2];
  std::uint32_t parameter_id;
  std::uint32_t number;
  std::int64_t first_index;
  std::int64_t inner_length;
  std::int64_t outer_stride;
  // Per rank code: the threshold, its highest bit flipped so that a signed comparison orders it, in the upper half, and
  // the bits of the rescaling factor in the lower half.
  const std::uint64_t* table;
};

// The scalars of AdamW in one step, rounded once to float32.
struct AdamW {
  float decay;                // 1 - lr * weight_decay
  float lerp_weight;          // 1 - beta1, or -beta1 where the interpolation starts at the gradient
  bool lerp_from_gradient;    // 1 - beta1 >= 0.5, as in torch.lerp
  float beta2, one_minus_beta2;
  float denominator_factor;   // 1 / sqrt(1 - beta2^step)
  float eps;
  float step_size;            // lr / (1 - beta1^step)
  bool maximize;
};

// One parameter with its gradient and state. Pointers of what a step does not use are null.
struct Parameter {
  void* param;
  const void* grad;
  void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
  float* importance;
  const std::uint8_t* rank_code;
  AdamW adamw;
  Draw draw;
};

struct Kernels {
  const char* name;
  bool (*supported)();
  // One step of elements begin .. end - 1, by dtype of parameter and gradient, and of moments.
  void (*step[DTYPES][DTYPES])(const Parameter&, std::int64_t begin, std::int64_t end);
  // Adds squares of elements begin .. end - 1, by dtype of the gradient.
  void (*accumulate[DTYPES])(float* importance, const void* grad, std::int64_t begin, std::int64_t end);
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_portable;
