// What a step takes: StepRow, Position and the numbers of StepOptions in kernels/step.py, field by field. Loading the library
// compares them by name.
#pragma once

#include <cstdint>

// TENSOR(name, dtype, access): the dtype is that of the parameter, of the moments, of the scores, or its own. A step reads
// every tensor.
#define ROAST_TENSORS(TENSOR)              \
  TENSOR(param, parameter, written)        \
  TENSOR(grad, parameter, read)            \
  TENSOR(step, one_float32, written)       \
  TENSOR(exp_avg, moment, written)         \
  TENSOR(exp_avg_sq, moment, written)      \
  TENSOR(max_exp_avg_sq, moment, written)  \
  TENSOR(importance, score, written)       \
  TENSOR(rank_code, uint8, read)           \
  TENSOR(pretrained, moment, read)

#define ROAST_POSITIONS(POSITION) \
  POSITION(parameter_id) POSITION(first_index) POSITION(inner_length) POSITION(outer_stride)

// SCALAR(type, name)
#define ROAST_SCALARS(SCALAR)                                                             \
  SCALAR(double, lr)                                                                      \
  SCALAR(double, beta1)                                                                   \
  SCALAR(double, beta2)                                                                   \
  SCALAR(double, eps)                                                                     \
  SCALAR(double, weight_decay)                                                            \
  SCALAR(std::int64_t, maximize)                                                          \
  SCALAR(double, pretrained_decay)                                                        \
  SCALAR(std::int64_t, pretrained_decay_by) /* 0: uniform, 1: rank */                     \
  SCALAR(std::int64_t, stochastic_rounding)                                               \
  SCALAR(std::uint64_t, rounding_seed)                                                    \
  SCALAR(double, gradient_factor)                                                         \
  SCALAR(std::uint64_t, seed)                                                             \
  SCALAR(std::int64_t, draw_number) /* negative: each parameter's step */                 \
  SCALAR(std::int64_t, acts_on)     /* 0: gradient, 1: update */

namespace field {
#define NUMBER(name, dtype, access) name,
enum Tensor { ROAST_TENSORS(NUMBER) COUNT };
#undef NUMBER
#define NUMBER(name) name,
enum Position { ROAST_POSITIONS(NUMBER) POSITION_COUNT };
#undef NUMBER
}  // namespace field

constexpr int TENSORS = field::COUNT, POSITIONS = field::POSITION_COUNT;
