// Work shared among the threads of torch's OpenMP runtime, of which this library links no copy of its own: the address of
// its entry point is handed in. Results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

// GOMP_parallel, which libgomp, LLVM's libomp and Intel's libiomp5 offer: runs function(argument) in every thread of a
// team. Null: everything runs in the calling thread.
using RunTeam = void (*)(void (*function)(void*), void* argument, unsigned threads, unsigned flags);
extern RunTeam run_team;

// Elements of one piece of work: large enough to pay for a parallel region, as at::internal::GRAIN_SIZE.
constexpr std::int64_t CHUNK = 32768;

// Takes numbers 0 .. count - 1, each once, in any thread.
class Pieces {
 public:
  explicit Pieces(std::int64_t count) : count_(count) {}
  bool take(std::int64_t& piece) {
    piece = next_.fetch_add(1, std::memory_order_relaxed);
    return piece < count_;
  }

 private:
  std::atomic<std::int64_t> next_{0};
  const std::int64_t count_;
};

// Calls body(pieces) in up to `threads` threads, each of which takes pieces until none is left. One piece opens no
// parallel region. The body must not throw.
template <class Body>
void in_threads(std::int64_t count, int threads, const Body& body) {
  struct Shared {
    Pieces pieces;
    const Body& body;
  } shared{Pieces(count), body};
  auto run = [](void* argument) {
    Shared& shared = *static_cast<Shared*>(argument);
    shared.body(shared.pieces);
  };
  if (run_team == nullptr || threads <= 1 || count <= 1)
    run(&shared);
  else
    run_team(run, &shared, static_cast<unsigned>(threads), 0);
}

// The elements of many tensors, cut into chunks that hold parts of one or several tensors.
class Chunks {
 public:
  Chunks(std::int64_t tensors, const std::int64_t* numel) : numel_(numel), starts_(tensors + 1) {
    for (std::int64_t i = 0; i < tensors; i++)
      starts_[i + 1] = starts_[i] + (numel[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }

  std::int64_t count() const { return (starts_.back() + CHUNK - 1) / CHUNK; }

  // Calls visit(tensor, begin, end) for each part of a chunk.
  template <class Visit>
  void visit(std::int64_t chunk, const Visit& visit) const {
    const std::int64_t first = chunk * CHUNK, last = std::min(first + CHUNK, starts_.back());
    auto start = std::upper_bound(starts_.begin(), starts_.end(), first) - 1;
    for (; *start < last; ++start) {
      const std::int64_t tensor = start - starts_.begin();
      const std::int64_t begin = std::max(first - *start, std::int64_t{0}), end = std::min(last - *start, numel_[tensor]);
      if (begin < end) visit(tensor, begin, end);
    }
  }

 private:
  // Parts begin at a multiple of this: of Philox blocks, of vectors, and of cache lines of bytes.
  static constexpr std::int64_t ALIGNMENT = 64;

  const std::int64_t* numel_;
  std::vector<std::int64_t> starts_;
};

// Calls visit(tensor, begin, end) for parts that cover all elements of all tensors.
template <class Visit>
void for_each_part(const Chunks& chunks, int threads, const Visit& visit) {
  in_threads(chunks.count(), threads, [&](Pieces& pieces) {
    for (std::int64_t chunk; pieces.take(chunk);) chunks.visit(chunk, visit);
  });
}
