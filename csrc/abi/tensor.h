// Tensors, through torch's stable C ABI (abi/torch_c.h): what bindings and checks ask of them, with
// the names that torch gives it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "abi/torch_c.h"

namespace fudlr {

// The code that torch gives a dtype; written as its name.
enum class Dtype : int32_t {};
inline const Dtype kFloat{aoti_torch_dtype_float32()}, kDouble{aoti_torch_dtype_float64()},
    kBFloat16{aoti_torch_dtype_bfloat16()}, kHalf{aoti_torch_dtype_float16()},
    kChar{aoti_torch_dtype_int8()}, kInt{aoti_torch_dtype_int32()}, kLong{aoti_torch_dtype_int64()};
void put(std::string& out, Dtype dtype);

struct Device {
  int32_t type, index;
  bool operator==(const Device&) const = default;
};
void put(std::string& out, const Device& device);

// A few numbers of somebody else's, sizes or strides; of a list, for as long as a call takes.
struct Numbers {
  const int64_t* data;
  int64_t count;
  Numbers(const int64_t* first, int64_t size) : data(first), count(size) {}
  Numbers(std::initializer_list<int64_t> list) : count(static_cast<int64_t>(list.size())) {
    data = list.begin();
  }
  int64_t operator[](int64_t i) const { return data[i]; }
};
void put(std::string& out, const Numbers& numbers);

// A reference to one of torch's tensors, or to none. What a kernel does not change in them is read
// once.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle owned);
  Tensor(const Tensor& other);
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() && { return std::exchange(handle_, nullptr); }

  bool defined() const { return handle_ != nullptr; }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  Numbers sizes() const { return {sizes_, dim_}; }
  Numbers strides() const { return {strides_, dim_}; }
  int64_t numel() const;
  Dtype scalar_type() const { return dtype_; }
  Device device() const { return device_; }
  bool is_cuda() const { return device_.type == aoti_torch_device_type_cuda(); }
  bool is_contiguous() const;

  template <typename T = void>
  const T* const_data_ptr() const {
    return static_cast<const T*>(read());
  }
  template <typename T = void>
  T* mutable_data_ptr() const {
    return static_cast<T*>(written());
  }

  Tensor contiguous() const;
  Tensor clone() const;  // without gaps
  // The same memory with other sizes and strides, from `offset` numbers on.
  Tensor viewed(const Numbers& sizes, const Numbers& strides, int64_t offset = 0) const;
  Tensor narrow(int64_t dim, int64_t start, int64_t length) const;
  Tensor transpose(int64_t first, int64_t second) const;

 private:
  const void* read() const;
  void* written() const;
  void swap(Tensor& other) noexcept;

  AtenTensorHandle handle_ = nullptr;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;
  int64_t dim_ = 0;
  Dtype dtype_{};
  Device device_{};
};

using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// New tensors on the device of `like`, in its dtype or in another.
Tensor empty(const Numbers& sizes, const Tensor& like, std::optional<Dtype> dtype = std::nullopt);
Tensor zeros(const Numbers& sizes, const Tensor& like, std::optional<Dtype> dtype = std::nullopt);

// Throws where torch says that a call went wrong; torch writes to stderr why.
void require(AOTITorchError error, const char* call);

}  // namespace fudlr
