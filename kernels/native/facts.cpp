// What a plan relies on of its tensors, read without a call of Python for each: by DLPack's table of functions, which torch
// offers for its tensors since 2.10 (https://dmlc.github.io/dlpack/latest/c_api.html). Called with the interpreter's lock.
#include "facts.h"

#include "interface.h"

extern "C" void* PyList_GetItem(void* list, std::ptrdiff_t index);  // borrowed; the interpreter has it

namespace {

// Of dlpack.h, version 1: its layout is fixed within a major version.
struct DLTensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  struct {
    std::uint8_t code, bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};

struct ExchangeTable {
  std::uint32_t major, minor;
  const ExchangeTable* previous;
  void *allocator, *managed_from_object, *object_from_managed;
  int (*tensor_from_object)(void* object, DLTensor* tensor);
  void* current_stream;
};

constexpr std::uint32_t KNOWN_MAJOR = 1;

const ExchangeTable* known(const void* table) {
  auto* each = static_cast<const ExchangeTable*>(table);
  while (each != nullptr && each->major != KNOWN_MAJOR) each = each->previous;
  return each != nullptr && each->tensor_from_object != nullptr ? each : nullptr;
}

TensorFacts facts_of(const DLTensor& t) {
  TensorFacts facts;
  facts.address = reinterpret_cast<std::int64_t>(t.data) + static_cast<std::int64_t>(t.byte_offset);
  facts.kind = t.dtype.code | t.dtype.bits << 8 | static_cast<std::int64_t>(t.device_type) << 32 |
               static_cast<std::int64_t>(t.device_id) << 48;
  facts.numel = 1;
  for (std::int32_t dim = 0; dim < t.ndim; dim++) facts.numel *= t.shape[dim];
  facts.contiguous = true;
  std::int64_t expected = 1;
  for (std::int32_t dim = t.ndim - 1; dim >= 0 && facts.numel != 0; dim--) {
    if (t.shape[dim] == 1) continue;
    if (t.strides != nullptr && t.strides[dim] != expected) facts.contiguous = false;
    expected *= t.shape[dim];
  }
  return facts;
}

}  // namespace

std::int32_t roast_facts(const void* exchange_table, void* tensors, std::int64_t count, TensorFacts* facts) {
  const ExchangeTable* table = known(exchange_table);
  if (table == nullptr) return -1;
  for (std::int64_t i = 0; i < count; i++) {
    DLTensor tensor;
    void* object = PyList_GetItem(tensors, i);
    if (object == nullptr || table->tensor_from_object(object, &tensor) != 0) return -1;
    facts[i] = facts_of(tensor);
  }
  return 0;
}
