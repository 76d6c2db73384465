// roast_adamw: checks, scalars of the step, and the kernels over all parameters.
#include <cmath>
#include <cstring>

#include "checks.h"
#include "interface.h"
#include "kernels.h"
#include "parallel.h"

namespace {

constexpr std::int64_t LARGEST_WORD = UINT32_MAX;

// The index in the whole parameter of every element must be below 2^63.
bool valid_placement(const RoastStep& s, std::int64_t i) {
  const std::int64_t id = s.parameter_ids[i], first = s.first_indices[i];
  const std::int64_t inner = s.inner_lengths[i], stride = s.outer_strides[i];
  if (id < 0 || id > LARGEST_WORD || first < 0 || inner < 1 || stride < 0) return false;
  const std::int64_t numel = std::max<std::int64_t>(s.numel[i], 1);
  std::int64_t end;
  return !__builtin_mul_overflow((numel - 1) / inner, stride, &end) && !__builtin_add_overflow(end, first, &end) &&
         !__builtin_add_overflow(end, std::min(inner, numel), &end);
}

float step_count(const RoastStep& s, std::int64_t i) {
  float step;
  std::memcpy(&step, reinterpret_cast<const void*>(s.state_steps[i]), sizeof step);
  return step;
}

const char* check(const RoastStep& s) {
  if (!valid_sizes(s.count, s.numel)) return INVALID_SIZES;
  if (!is_dtype(s.param_dtype) || !is_dtype(s.moment_dtype)) return "unknown dtype";
  if (s.draw_number > LARGEST_WORD) return "selection.draw_number must be below 2**32";
  const std::int64_t bytes = BYTES[s.param_dtype], moment_bytes = BYTES[s.moment_dtype];
  Memory memory(8 * s.count);
  for (std::int64_t i = 0; i < s.count; i++) {
    const std::int64_t n = s.numel[i];
    memory.writes(s.params[i], n * bytes);
    memory.reads(s.grads[i], n * bytes);
    memory.writes(s.exp_avgs[i], n * moment_bytes);
    memory.writes(s.exp_avg_sqs[i], n * moment_bytes);
    if (s.max_exp_avg_sqs != nullptr) memory.writes(s.max_exp_avg_sqs[i], n * moment_bytes);
    memory.writes(s.state_steps[i], sizeof(float));
    if (s.importances != nullptr) memory.writes(s.importances[i], n * sizeof(float));
    if (s.rank_codes != nullptr) memory.reads(s.rank_codes[i], n);
    if (s.thresholds != nullptr && !valid_placement(s, i))
      return "a placement is impossible: parameter_id must be below 2**32 and the index of every element in the whole "
             "parameter below 2**63, nothing may be negative, and inner_length must be at least 1";
  }
  if (!memory.suitable()) return UNSUITABLE;
  for (std::int64_t i = 0; i < s.count; i++)
    if (!(step_count(s, i) >= 0 && step_count(s, i) < static_cast<float>(LARGEST_WORD)))
      return "a step count is negative or too large";
  return nullptr;
}

const char* fill(SelectionTable& table, const std::int64_t* thresholds, const float* rescaling) {
  for (int code = 0; code < RANK_CODES; code++) {
    if (thresholds[code] < 1 || thresholds[code] > LARGEST_WORD)
      return "selection.thresholds must lie in [1, 2**32 - 1]";
    if (!(rescaling[code] > 0 && std::isfinite(rescaling[code])))
      return "selection.rescaling must be positive and finite";
    const auto threshold = static_cast<std::uint32_t>(thresholds[code]);
    std::uint32_t factor;
    std::memcpy(&factor, rescaling + code, sizeof factor);
    table.pairs[code] = static_cast<std::uint64_t>(threshold ^ 0x80000000) << 32 | factor;
    for (int byte = 0; byte < 4; byte++) {
      table.threshold_bytes[byte][code] = static_cast<std::uint8_t>(threshold >> 8 * byte);
      table.factor_bytes[byte][code] = static_cast<std::uint8_t>(factor >> 8 * byte);
    }
  }
  return nullptr;
}

AdamW scalars(const RoastStep& s, float step) {
  const double lerp_weight = 1 - s.beta1;
  AdamW adamw;
  adamw.decay = static_cast<float>(1 - s.lr * s.weight_decay);
  adamw.lerp_from_gradient = lerp_weight >= 0.5;
  adamw.lerp_weight = static_cast<float>(adamw.lerp_from_gradient ? -s.beta1 : lerp_weight);
  adamw.beta2 = static_cast<float>(s.beta2);
  adamw.one_minus_beta2 = static_cast<float>(1 - s.beta2);
  adamw.denominator_factor = static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, static_cast<double>(step))));
  adamw.eps = static_cast<float>(s.eps);
  adamw.negative_step_size = static_cast<float>(-s.lr / (1 - std::pow(s.beta1, static_cast<double>(step))));
  adamw.maximize = s.maximize != 0;
  return adamw;
}

Draw draw(const RoastStep& s, std::int64_t i, float step, const SelectionTable& table) {
  return {&table,
          {static_cast<std::uint32_t>(s.seed), static_cast<std::uint32_t>(s.seed >> 32)},
          static_cast<std::uint32_t>(s.parameter_ids[i]),
          static_cast<std::uint32_t>(s.draw_number < 0 ? static_cast<std::int64_t>(step) : s.draw_number),
          s.first_indices[i],
          s.inner_lengths[i],
          s.outer_strides[i]};
}

// Increments the step counts.
std::vector<Parameter> parameters(const RoastStep& s, const SelectionTable& table) {
  std::vector<Parameter> all(s.count);
  AdamW adamw{};
  float step_of_adamw = 0;
  for (std::int64_t i = 0; i < s.count; i++) {
    const float step = step_count(s, i) + 1;
    if (step != step_of_adamw) adamw = scalars(s, step_of_adamw = step);
    auto at = [i](const std::int64_t* list) { return list == nullptr ? nullptr : reinterpret_cast<void*>(list[i]); };
    std::memcpy(at(s.state_steps), &step, sizeof step);
    Parameter& p = all[i];
    p.param = at(s.params);
    p.grad = at(s.grads);
    p.exp_avg = at(s.exp_avgs);
    p.exp_avg_sq = at(s.exp_avg_sqs);
    p.max_exp_avg_sq = at(s.max_exp_avg_sqs);
    p.importance = static_cast<float*>(at(s.importances));
    p.adamw = adamw;
    if (s.thresholds != nullptr) {
      p.rank_code = static_cast<const std::uint8_t*>(at(s.rank_codes));
      p.draw = draw(s, i, step, table);
    } else {
      p.draw.inner_length = std::max<std::int64_t>(s.numel[i], 1);
    }
  }
  return all;
}

}  // namespace

const char* roast_adamw(const RoastStep* step) {
  return guarded([&]() -> const char* {
    const RoastStep& s = *step;
    if (const char* message = check(s)) return message;
    SelectionTable table;
    if (s.thresholds != nullptr)
      if (const char* message = fill(table, s.thresholds, s.rescaling)) return message;
    const Chunks chunks(s.count, s.numel);
    const std::vector<Parameter> all = parameters(s, table);
    const auto kernel = kernels->step[s.param_dtype][s.moment_dtype];
    for_each_part(chunks, s.threads, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      kernel(all[i], begin, end);
    });
    return nullptr;
  });
}
