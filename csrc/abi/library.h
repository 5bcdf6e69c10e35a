// Registers ops and their kernels with torch's dispatcher, through its stable C ABI:
//
//   FUDLR_LIBRARY(fudlr, m) { m.def("scaled(Tensor x, float by=2) -> Tensor"); }
//   Tensor scaled(const Tensor& x, double by);
//   FUDLR_LIBRARY_IMPL(fudlr, CPU, m) { m.impl<&scaled>("scaled"); }
//
// Kernels take Tensor, OptionalTensor, Tensors, int64_t, double and bool, and return nothing, a
// Tensor or a tuple of them. torch hands them over as a stack of 64-bit numbers, and takes the
// results from it.
#pragma once

#include <bit>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "abi/errors.h"
#include "abi/tensor.h"

namespace fudlr::abi {

// The version of the ABI that values are passed by: torch 2.10's, which later ones read as well.
constexpr uint64_t kVersion = (2ULL << 56) | (10ULL << 48);

// What was passed as an argument, whose handle becomes ours.
template <typename T>
T taken(StableIValue value) {
  if constexpr (std::is_same_v<T, Tensor>) {
    return Tensor(std::bit_cast<AtenTensorHandle>(value));
  } else if constexpr (std::is_same_v<T, OptionalTensor>) {
    const auto* inner = std::bit_cast<StableIValue*>(value);
    if (inner == nullptr) return std::nullopt;
    OptionalTensor found = taken<Tensor>(*inner);
    delete inner;
    return found;
  } else if constexpr (std::is_same_v<T, Tensors>) {
    auto* list = std::bit_cast<StableListHandle>(value);
    size_t count = 0;
    require(torch_list_size(list, &count), "torch_list_size");
    Tensors found;
    for (size_t i = 0; i < count; ++i) {
      StableIValue each = 0;
      require(torch_list_get_item(list, i, &each), "torch_list_get_item");
      found.push_back(taken<Tensor>(each));
    }
    require(torch_delete_list(list), "torch_delete_list");
    return found;
  } else if constexpr (std::is_same_v<T, bool>) {
    return (value & 0xff) != 0;
  } else {
    static_assert(std::is_same_v<T, int64_t> || std::is_same_v<T, double>);
    return std::bit_cast<T>(value);
  }
}

// What is passed, whose handle becomes torch's.
inline StableIValue given(Tensor tensor) {
  return std::bit_cast<StableIValue>(std::move(tensor).release());
}
inline StableIValue given(int64_t number) { return std::bit_cast<StableIValue>(number); }
inline StableIValue given(bool flag) { return flag ? 1 : 0; }
// An optional argument that is there: torch frees the number that it points to.
template <typename T>
StableIValue given_optional(T value) {
  return std::bit_cast<StableIValue>(new StableIValue(given(std::move(value))));
}

template <auto kernel, typename Result, typename... Arguments>
struct Boxed {
  static void call(StableIValue* stack, uint64_t, uint64_t) {
    run(stack, std::index_sequence_for<Arguments...>());
  }

 private:
  template <size_t... i>
  static void run(StableIValue* stack, std::index_sequence<i...>) {
    // All are taken before any can fail, so that none is lost.
    std::tuple<std::remove_cvref_t<Arguments>...> arguments{
        taken<std::remove_cvref_t<Arguments>>(stack[i])...};
    if constexpr (std::is_void_v<Result>) {
      kernel(std::get<i>(arguments)...);
    } else if constexpr (std::is_same_v<Result, Tensor>) {
      stack[0] = given(kernel(std::get<i>(arguments)...));
    } else {
      std::apply([&](auto&&... each) { put(stack, std::move(each)...); },
                 kernel(std::get<i>(arguments)...));
    }
  }
  template <typename... Tensors>
  static void put(StableIValue* stack, Tensors... tensors) {
    ((*stack++ = given(std::move(tensors))), ...);
  }
};

template <auto kernel, typename Result, typename... Arguments>
auto boxed(Result (*)(Arguments...)) {
  return &Boxed<kernel, Result, Arguments...>::call;
}

// One of torch's libraries, under construction; like torch's own it is never torn down.
class Library {
 public:
  using Fill = void(Library&);

  Library(const char* name, Fill* fill, const char* file, int line) {
    require(aoti_torch_library_init_def(name, file, static_cast<uint32_t>(line), &handle_), name);
    fill(*this);
  }
  Library(const char* name, const char* key, Fill* fill, const char* file, int line) {
    require(aoti_torch_library_init_impl(name, key, file, static_cast<uint32_t>(line), &handle_),
            name);
    fill(*this);
  }

  void def(const char* schema) { require(aoti_torch_library_def(handle_, schema), schema); }
  template <auto kernel>
  void impl(const char* op) {
    require(torch_library_impl(handle_, op, boxed<kernel>(kernel), kVersion), op);
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

}  // namespace fudlr::abi

#define FUDLR_LIBRARY(name, m)                                                                   \
  static void fudlr_define_##name(::fudlr::abi::Library&);                                       \
  static const ::fudlr::abi::Library fudlr_library_##name(#name, &fudlr_define_##name, __FILE__, \
                                                          __LINE__);                             \
  static void fudlr_define_##name(::fudlr::abi::Library& m)

#define FUDLR_LIBRARY_IMPL(name, key, m) FUDLR_LIBRARY_IMPL_(name, key, m, __COUNTER__)
#define FUDLR_LIBRARY_IMPL_(name, key, m, id) FUDLR_LIBRARY_IMPL__(name, key, m, id)
#define FUDLR_LIBRARY_IMPL__(name, key, m, id)                          \
  static void fudlr_implement_##name##_##id(::fudlr::abi::Library&);    \
  static const ::fudlr::abi::Library fudlr_kernels_##name##_##id(       \
      #name, #key, &fudlr_implement_##name##_##id, __FILE__, __LINE__); \
  static void fudlr_implement_##name##_##id(::fudlr::abi::Library& m)
