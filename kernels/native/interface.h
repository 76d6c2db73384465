// The C interface, which library.py declares in Python. Functions return null, or a message that says what is wrong; they
// have then changed nothing.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// To be raised whenever something here changes.
constexpr std::int32_t ROAST_INTERFACE = 1;
std::int32_t roast_interface();

// Uses the kernels of an instruction set: "avx512", "avx2" or "portable"; "": the best that this processor has.
const char* roast_use_instruction_set(const char* name);
const char* roast_instruction_set();

// The OpenMP runtime's GOMP_parallel; null: one thread.
void roast_use_team(void* run_team);

// Arguments of roast_adamw. Lists have `count` entries; of tensors they hold the addresses. Null: not used.
struct RoastStep {
  std::int64_t count;
  const std::int64_t *numel, *params, *grads, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *state_steps, *importances,
      *rank_codes, *parameter_ids, *first_indices, *inner_lengths, *outer_strides;
  const std::int64_t* thresholds;  // 256, by rank code; null: everything is updated
  const float* rescaling;          // likewise
  std::uint64_t seed;
  std::int64_t draw_number;  // negative: each parameter's step
  double lr, beta1, beta2, eps, weight_decay;
  std::int32_t maximize, param_dtype, moment_dtype, threads;
};

const char* roast_adamw(const RoastStep* step);

const char* roast_accumulate(std::int64_t count, const std::int64_t* numel, const std::int64_t* importances,
                             const std::int64_t* grads, std::int32_t grad_dtype, std::int32_t threads);

// Adds to `bin_counts` (65,536).
const char* roast_histogram(std::int64_t count, const std::int64_t* numel, const std::int64_t* scores,
                            std::int64_t* bin_counts, std::int32_t threads);

// `table`: rank code of each of the 65,536 bins.
const char* roast_assign_codes(std::int64_t count, const std::int64_t* numel, const std::int64_t* importances,
                               const std::int64_t* rank_codes, const std::uint8_t* table, std::int32_t threads);
}
#pragma GCC visibility pop
