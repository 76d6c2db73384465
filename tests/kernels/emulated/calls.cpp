// Calls of the native kernels for a program outside of the process: emulated_backend.py, which compiles this for a
// processor that only an emulator has. A call comes in by standard input and goes out, with what it changed, by standard
// output:
//   in:  function, integers, reals, tensors    each list with its length before it, each tensor with its bytes
//   out: length of the message, message, tensors without their lengths
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "interface.h"

namespace {

using Integer = std::int64_t;
using Integers = std::vector<Integer>;

void read(void* to, std::size_t bytes) {
  if (bytes > 0 && std::fread(to, 1, bytes, stdin) != bytes) std::exit(1);
}

template <class T>
std::vector<T> read_list() {
  Integer length;
  read(&length, sizeof length);
  std::vector<T> list(length);
  read(list.data(), length * sizeof(T));
  return list;
}

struct Call {
  Integers integers;
  std::vector<double> reals;
  std::vector<std::vector<char>> tensors;
  std::size_t next_integer = 0, next_real = 0, next_tensor = 0;

  Integer integer() { return integers[next_integer++]; }
  Integers next_integers(Integer count) {
    Integers list(count);
    for (Integer& number : list) number = integer();
    return list;
  }
  void* tensor() { return tensors[next_tensor++].data(); }
  Integers addresses(Integer count) {
    Integers list(count);
    for (Integer& address : list) address = reinterpret_cast<Integer>(tensor());
    return list;
  }
};

// The next number of the call, as the type that the field has.
template <class T>
void take(Call& call, T& field) {
  field = static_cast<T>(call.integer());
}
void take(Call& call, double& field) { field = call.reals[call.next_real++]; }

const char* adamw(Call& call) {
  RoastStep step = {};
  const Integer count = step.count = call.integer();
  step.param_dtype = static_cast<std::int32_t>(call.integer());
  step.moment_dtype = static_cast<std::int32_t>(call.integer());
  step.score_dtype = static_cast<std::int32_t>(call.integer());
  step.threads = 1;
#define SCALAR(type, name) take(call, step.name);
  ROAST_SCALARS(SCALAR)
#undef SCALAR

  const Integers numel = call.next_integers(count);
  Integers positions[POSITIONS], tensors[TENSORS], written(2 * TENSORS * count);
  step.numel = numel.data();
  step.written = written.data();
  for (int i = 0; i < POSITIONS; i++) step.positions[i] = (positions[i] = call.next_integers(count)).data();
  for (int i = 0; i < TENSORS; i++)
    if (call.integer() != 0) step.tensors[i] = (tensors[i] = call.addresses(count)).data();
  if (call.integer() != 0) {
    step.thresholds = static_cast<const Integer*>(call.tensor());
    step.rescaling = static_cast<const float*>(call.tensor());
  }
  if (const char* message = roast_plan(&step)) return message;
  return roast_adamw(&step);
}

const char* accumulate(Call& call) {
  const Integer dtype = call.integer(), count = call.integer();
  const Integers numel = call.next_integers(count), importances = call.addresses(count), grads = call.addresses(count);
  return roast_accumulate(count, numel.data(), importances.data(), grads.data(), static_cast<std::int32_t>(dtype), 1);
}

const char* histogram(Call& call) {
  const Integer dtype = call.integer(), count = call.integer();
  const Integers numel = call.next_integers(count), scores = call.addresses(count);
  return roast_histogram(count, numel.data(), scores.data(), static_cast<std::int32_t>(dtype),
                         static_cast<Integer*>(call.tensor()), 1);
}

const char* assign_codes(Call& call) {
  const Integer dtype = call.integer(), count = call.integer();
  const Integers numel = call.next_integers(count), importances = call.addresses(count), codes = call.addresses(count);
  return roast_assign_codes(count, numel.data(), importances.data(), static_cast<std::int32_t>(dtype), codes.data(),
                            static_cast<const std::uint8_t*>(call.tensor()), 1);
}

}  // namespace

int main() {
  const char* (*const functions[])(Call&) = {adamw, accumulate, histogram, assign_codes};
  for (Integer function; std::fread(&function, sizeof function, 1, stdin) == 1;) {
    Call call;
    call.integers = read_list<Integer>();
    call.reals = read_list<double>();
    Integer tensors;
    read(&tensors, sizeof tensors);
    while (static_cast<Integer>(call.tensors.size()) < tensors) call.tensors.push_back(read_list<char>());
    const char* message = functions[function](call);
    const Integer length = message == nullptr ? 0 : static_cast<Integer>(std::strlen(message));
    std::fwrite(&length, sizeof length, 1, stdout);
    std::fwrite(message, 1, length, stdout);
    for (const std::vector<char>& tensor : call.tensors) std::fwrite(tensor.data(), 1, tensor.size(), stdout);
    std::fflush(stdout);
  }
}
