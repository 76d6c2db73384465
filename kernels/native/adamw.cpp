// roast_adamw: checks, scalars of the step, and the kernels over all parameters.
#include <cmath>
#include <cstring>

#include "checks.h"
#include "interface.h"
#include "kernels.h"
#include "parallel.h"

namespace {

constexpr std::int64_t LARGEST_WORD = UINT32_MAX;
constexpr float LAST_EXACT_COUNT = 1 << 24, LARGEST_COUNT = 0x1p62f;

// Bytes per element of each tensor; 0: it is a single float32.
std::int64_t bytes_of(int tensor, const RoastStep& s) {
  constexpr std::int64_t uint8 = 1, one_float32 = 0;
  const std::int64_t parameter = BYTES[s.param_dtype], moment = BYTES[s.moment_dtype], score = BYTES[s.score_dtype];
#define BYTES_OF(name, dtype, access) dtype,
  const std::int64_t bytes[] = {ROAST_TENSORS(BYTES_OF)};
#undef BYTES_OF
  return bytes[tensor];
}

bool is_written(int tensor) {
  constexpr bool read = false, written = true;
#define IS_WRITTEN(name, dtype, access) access,
  constexpr bool accesses[] = {ROAST_TENSORS(IS_WRITTEN)};
#undef IS_WRITTEN
  return accesses[tensor];
}

// The index in the whole parameter of every element must be below 2^63.
bool valid_position(const RoastStep& s, std::int64_t i) {
  const std::int64_t id = s.positions[field::parameter_id][i], first = s.positions[field::first_index][i];
  const std::int64_t inner = s.positions[field::inner_length][i], stride = s.positions[field::outer_stride][i];
  if (id < 0 || id > LARGEST_WORD || first < 0 || inner < 1 || stride < 0) return false;
  const std::int64_t numel = std::max<std::int64_t>(s.numel[i], 1);
  std::int64_t end;
  return !__builtin_mul_overflow((numel - 1) / inner, stride, &end) && !__builtin_add_overflow(end, first, &end) &&
         !__builtin_add_overflow(end, std::min(inner, numel), &end);
}

float step_count(const RoastStep& s, std::int64_t i) {
  float step;
  std::memcpy(&step, reinterpret_cast<const void*>(s.tensors[field::step][i]), sizeof step);
  return step;
}

// From 2^24 on adding one changes nothing: see next_count in step.py.
float next_count(float count) { return count < LAST_EXACT_COUNT ? count + 1 : std::nextafter(count, INFINITY); }

const char* check_rows(RoastStep& s) {
  if (!valid_sizes(s.count, s.numel)) return INVALID_SIZES;
  if (!is_dtype(s.param_dtype) || !is_dtype(s.moment_dtype) || !is_dtype(s.score_dtype)) return "unknown dtype";
  Memory memory(TENSORS * s.count);
  for (int tensor = 0; tensor < TENSORS; tensor++) {
    if (s.tensors[tensor] == nullptr || tensor == field::grad) continue;
    const std::int64_t bytes = bytes_of(tensor, s);
    for (std::int64_t i = 0; i < s.count; i++)
      memory.uses(s.tensors[tensor][i], bytes == 0 ? sizeof(float) : bytes * s.numel[i], is_written(tensor));
  }
  for (std::int64_t i = 0; i < s.count; i++)
    if (!valid_position(s, i))
      return "a position is impossible: parameter_id must be below 2**32 and the index of every element in the whole "
             "parameter below 2**63, nothing may be negative, and inner_length must be at least 1";
  if (!memory.suitable()) return UNSUITABLE;
  s.written_count = memory.copy_written(s.written);
  return nullptr;
}

// Whether every gradient with elements has an address, and overlaps nothing that is written.
bool gradients_are_suitable(const RoastStep& s) {
  struct Range {
    std::int64_t begin, end;
  };
  const Range* ranges = reinterpret_cast<const Range*>(s.written);
  const std::int64_t bytes = BYTES[s.param_dtype];
  for (std::int64_t i = 0; i < s.count; i++) {
    const std::int64_t begin = s.tensors[field::grad][i], end = begin + bytes * s.numel[i];
    if (begin == end) continue;
    if (begin == 0) return false;
    const Range* next = std::upper_bound(ranges, ranges + s.written_count, begin,
                                         [](std::int64_t address, const Range& range) { return address < range.end; });
    if (next != ranges + s.written_count && next->begin < end) return false;
  }
  return true;
}

const char* check_step(const RoastStep& s) {
  if (s.draw_number > LARGEST_WORD) return "selection.draw_number must be below 2**32";
  if (!gradients_are_suitable(s)) return UNSUITABLE;
  for (std::int64_t i = 0; i < s.count; i++)
    if (!(step_count(s, i) >= 0 && step_count(s, i) < LARGEST_COUNT))
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
    table.drop_probabilities[code] = static_cast<float>(LARGEST_WORD + 1 - thresholds[code]) * 0x1p-32f;
    table.pairs[code] = static_cast<std::uint64_t>(threshold ^ 0x80000000) << 32 | factor;
    for (int byte = 0; byte < 4; byte++) {
      table.threshold_bytes[byte][code] = static_cast<std::uint8_t>(threshold >> 8 * byte);
      table.factor_bytes[byte][code] = static_cast<std::uint8_t>(factor >> 8 * byte);
    }
  }
  return nullptr;
}

AdamW scalars(const RoastStep& s, float step, const SelectionTable& table) {
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
  adamw.gradient_factor = static_cast<float>(s.gradient_factor);
  adamw.maximize = s.maximize != 0;
  adamw.masks_update = s.acts_on != 0 && s.thresholds != nullptr;
  adamw.pretrained_decay = static_cast<float>(s.lr * s.pretrained_decay);
  adamw.decay_of_rank = s.pretrained_decay_by != 0 ? &table.drop_probabilities : nullptr;
  adamw.rounds_values = s.stochastic_rounding != 0;
  return adamw;
}

Rounding rounding(const RoastStep& s) {
  if (s.score_dtype != FLOAT32 && s.tensors[field::importance] != nullptr) return SCORES_TOO;
  return s.stochastic_rounding != 0 && (s.param_dtype != FLOAT32 || s.moment_dtype != FLOAT32) ? STOCHASTIC : TO_NEAREST;
}

Draw draw(const RoastStep& s, std::int64_t i, std::uint64_t seed, std::int64_t draw_number,
          const SelectionTable& table) {
  return {&table,
          {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
          static_cast<std::uint32_t>(s.positions[field::parameter_id][i]),
          static_cast<std::uint32_t>(draw_number),
          s.positions[field::first_index][i],
          s.positions[field::inner_length][i],
          s.positions[field::outer_stride][i]};
}

// Increments the step counts.
std::vector<Parameter> parameters(const RoastStep& s, const SelectionTable& table) {
  const bool rounds = rounding(s) != TO_NEAREST;
  std::vector<Parameter> all(s.count);
  AdamW adamw{};
  float step_of_adamw = 0;
  for (std::int64_t i = 0; i < s.count; i++) {
    const float step = next_count(step_count(s, i));
    if (step != step_of_adamw) adamw = scalars(s, step_of_adamw = step, table);
    std::memcpy(reinterpret_cast<void*>(s.tensors[field::step][i]), &step, sizeof step);
    Parameter& p = all[i];
    for (int tensor = 0; tensor < TENSORS; tensor++)
      p.tensors[tensor] = s.tensors[tensor] == nullptr ? nullptr : reinterpret_cast<void*>(s.tensors[tensor][i]);
    p.adamw = adamw;
    const auto own = static_cast<std::int64_t>(step);
    if (rounds) p.rounding = draw(s, i, s.rounding_seed, own, table);
    if (s.thresholds != nullptr) {
      p.draw = draw(s, i, s.seed, s.draw_number < 0 ? own : s.draw_number, table);
    } else {
      p.tensors[field::rank_code] = nullptr;
      if (s.pretrained_decay_by != 0) p.tensors[field::pretrained] = nullptr;
      if (rounds)
        p.draw = p.rounding;
      else
        p.draw.inner_length = std::max<std::int64_t>(s.numel[i], 1);
    }
  }
  return all;
}

}  // namespace

const char* roast_fields() {
#define TENSOR(name, dtype, access) #name " " #dtype " " #access "\n"
#define POSITION(name) #name "\n"
#define SCALAR(type, name) #name " " #type "\n"
  return ROAST_TENSORS(TENSOR) ROAST_POSITIONS(POSITION) ROAST_SCALARS(SCALAR);
#undef TENSOR
#undef POSITION
#undef SCALAR
}

const char* roast_plan(RoastStep* step) {
  return guarded([&]() -> const char* { return check_rows(*step); });
}

const char* roast_adamw(const RoastStep* step) {
  return guarded([&]() -> const char* {
    const RoastStep& s = *step;
    if (const char* message = check_step(s)) return message;
    SelectionTable table;
    if (s.thresholds != nullptr)
      if (const char* message = fill(table, s.thresholds, s.rescaling)) return message;
    const Chunks chunks(s.count, s.numel);
    const std::vector<Parameter> all = parameters(s, table);
    const auto kernel = kernels->step[s.param_dtype][s.moment_dtype][rounding(s)];
    for_each_part(chunks, s.threads, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      kernel(all[i], begin, end);
    });
    return nullptr;
  });
}
