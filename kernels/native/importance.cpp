// Importance scores: accumulation without a step, their histogram, and the rank codes made from it.
#include <cstring>

#include "checks.h"
#include "interface.h"
#include "kernels.h"
#include "parallel.h"

namespace {

constexpr int BINS = 65536;
constexpr int HISTOGRAM_THREADS = 16;  // each holds counts of its own, and a few threads use all of the memory bandwidth
constexpr std::int64_t HISTOGRAM_CHUNKS = (1LL << 31) / CHUNK;  // at a time, so that 32 bits hold every count

// The upper 17 bits of a float32 without its sign: bins are ordered like the scores they hold.
std::uint32_t bin_of(std::uint32_t bits) { return bits >> 15 & (BINS - 1); }
// Of a bfloat16, which is the upper half of a float32.
std::uint32_t bin_of(std::uint16_t bits) { return bin_of(static_cast<std::uint32_t>(bits) << 16); }

template <class Bits>
void count_bins(const Bits* scores, std::int64_t count, std::uint32_t* counts) {
  constexpr int WIDTH = 8;
  Bits bits[WIDTH];
  std::int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) {
    std::memcpy(bits, scores + i, sizeof bits);
    Bits any = 0;
    for (Bits b : bits) any |= b;
    if (any == 0)  // rows of an embedding that no token used: adding one by one to the same count is slow
      counts[0] += WIDTH;
    else
      for (Bits b : bits) counts[bin_of(b)]++;
  }
  for (; i < count; i++) {
    std::memcpy(bits, scores + i, sizeof bits[0]);
    counts[bin_of(bits[0])]++;
  }
}

template <class Bits>
void assign_codes(Bits* scores, std::uint8_t* codes, std::int64_t count, const std::uint8_t* table) {
  for (std::int64_t i = 0; i < count; i++) {
    Bits bits;
    std::memcpy(&bits, scores + i, sizeof bits);
    codes[i] = table[bin_of(bits)];
  }
  std::memset(scores, 0, count * sizeof *scores);
}

template <class T>
T* at(std::int64_t address, std::int64_t element) {
  return reinterpret_cast<T*>(address) + element;
}

}  // namespace

const char* roast_accumulate(std::int64_t count, const std::int64_t* numel, const std::int64_t* importances,
                             const std::int64_t* grads, std::int32_t grad_dtype, std::int32_t threads) {
  return guarded([&]() -> const char* {
    if (!valid_sizes(count, numel)) return INVALID_SIZES;
    if (!is_dtype(grad_dtype)) return "unknown dtype";
    Memory memory(2 * count);
    for (std::int64_t i = 0; i < count; i++) {
      memory.writes(importances[i], numel[i] * sizeof(float));
      memory.reads(grads[i], numel[i] * BYTES[grad_dtype]);
    }
    if (!memory.suitable()) return UNSUITABLE;
    for_each_part(Chunks(count, numel), threads, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      kernels->accumulate[grad_dtype](at<float>(importances[i], begin),
                                      at<char>(grads[i], begin * BYTES[grad_dtype]), end - begin);
    });
    return nullptr;
  });
}

const char* roast_histogram(std::int64_t count, const std::int64_t* numel, const std::int64_t* scores,
                            std::int32_t score_dtype, std::int64_t* bin_counts, std::int32_t threads) {
  return guarded([&]() -> const char* {
    if (!valid_sizes(count, numel)) return INVALID_SIZES;
    if (!is_dtype(score_dtype)) return "unknown dtype";
    Memory memory(count + 1);
    memory.writes(reinterpret_cast<std::int64_t>(bin_counts), BINS * sizeof *bin_counts);
    for (std::int64_t i = 0; i < count; i++) memory.reads(scores[i], numel[i] * BYTES[score_dtype]);
    if (!memory.suitable()) return UNSUITABLE;
    const Chunks chunks(count, numel);
    threads = std::clamp(threads, 1, HISTOGRAM_THREADS);
    for (std::int64_t first = 0; first < chunks.count(); first += HISTOGRAM_CHUNKS) {
      std::vector<std::vector<std::uint32_t>> counts(threads, std::vector<std::uint32_t>(BINS));
      Pieces owners(threads);
      in_threads(std::min(chunks.count() - first, HISTOGRAM_CHUNKS), threads, [&](Pieces& pieces) {
        std::int64_t owner;
        if (!owners.take(owner)) return;
        for (std::int64_t piece; pieces.take(piece);)
          chunks.visit(first + piece, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
            if (score_dtype == FLOAT32)
              count_bins(at<const std::uint32_t>(scores[i], begin), end - begin, counts[owner].data());
            else
              count_bins(at<const std::uint16_t>(scores[i], begin), end - begin, counts[owner].data());
          });
      });
      for (const auto& own : counts)
        for (int bin = 0; bin < BINS; bin++) bin_counts[bin] += own[bin];
    }
    return nullptr;
  });
}

const char* roast_assign_codes(std::int64_t count, const std::int64_t* numel, const std::int64_t* importances,
                               std::int32_t score_dtype, const std::int64_t* rank_codes, const std::uint8_t* table,
                               std::int32_t threads) {
  return guarded([&]() -> const char* {
    if (!valid_sizes(count, numel)) return INVALID_SIZES;
    if (!is_dtype(score_dtype)) return "unknown dtype";
    Memory memory(2 * count + 1);
    memory.reads(reinterpret_cast<std::int64_t>(table), BINS);
    for (std::int64_t i = 0; i < count; i++) {
      memory.writes(importances[i], numel[i] * BYTES[score_dtype]);
      memory.writes(rank_codes[i], numel[i]);
    }
    if (!memory.suitable()) return UNSUITABLE;
    for_each_part(Chunks(count, numel), threads, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      std::uint8_t* codes = at<std::uint8_t>(rank_codes[i], begin);
      if (score_dtype == FLOAT32)
        assign_codes(at<std::uint32_t>(importances[i], begin), codes, end - begin, table);
      else
        assign_codes(at<std::uint16_t>(importances[i], begin), codes, end - begin, table);
    });
    return nullptr;
  });
}
