// The C interface, which library.py declares in Python. Functions return null, or a message that says what is wrong; they
// have then changed nothing.
#pragma once

#include <cstdint>

#include "facts.h"
#include "fields.h"

#pragma GCC visibility push(default)
extern "C" {

// To be raised whenever a function here changes. What a step takes is compared by name.
constexpr std::int32_t ROAST_INTERFACE = 3;
std::int32_t roast_interface();

// The lists of fields.h, a line per entry: "param parameter written", "parameter_id", "lr double".
const char* roast_fields();

// Uses the kernels of an instruction set: "avx512", "avx2" or "portable"; "": the best that this processor has.
const char* roast_use_instruction_set(const char* name);
const char* roast_instruction_set();

// The OpenMP runtime's GOMP_parallel; null: one thread.
void roast_use_team(void* run_team);

// Parameters and what a step does to them. Lists have `count` entries.
struct RoastStep {
  std::int64_t count;
  const std::int64_t* numel;
  const std::int64_t* tensors[TENSORS];      // their addresses; null: not used
  const std::int64_t* positions[POSITIONS];  // where each parameter lies in its whole
  std::int64_t* written;  // begins and ends of the memory that is written, by address; room for 2 * TENSORS * count
  std::int64_t written_count;
  const std::int64_t* thresholds;  // 256, by rank code; null: everything is updated
  const float* rescaling;          // likewise
#define SCALAR(type, name) type name;
  ROAST_SCALARS(SCALAR)
#undef SCALAR
  std::int32_t param_dtype, moment_dtype, score_dtype, threads;
};

// Checks everything but gradients, options and step counts, which may change from step to step, and fills `written`.
const char* roast_plan(RoastStep* step);

// Of a step that roast_plan has checked.
const char* roast_adamw(const RoastStep* step);

// Facts of the first tensors of a Python list; -1 with Python's error set, or if the table is of another version.
std::int32_t roast_facts(const void* exchange_table, void* tensors, std::int64_t count, TensorFacts* facts);

// Of float32 importances.
const char* roast_accumulate(std::int64_t count, const std::int64_t* numel, const std::int64_t* importances,
                             const std::int64_t* grads, std::int32_t grad_dtype, std::int32_t threads);

// Adds to `bin_counts` (65,536).
const char* roast_histogram(std::int64_t count, const std::int64_t* numel, const std::int64_t* scores,
                            std::int32_t score_dtype, std::int64_t* bin_counts, std::int32_t threads);

// `table`: rank code of each of the 65,536 bins.
const char* roast_assign_codes(std::int64_t count, const std::int64_t* numel, const std::int64_t* importances,
                               std::int32_t score_dtype, const std::int64_t* rank_codes, const std::uint8_t* table,
                               std::int32_t threads);
}
#pragma GCC visibility pop
