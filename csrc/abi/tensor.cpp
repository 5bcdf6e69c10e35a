#include "abi/tensor.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi/errors.h"

namespace fudlr {
namespace {

std::vector<int64_t> dense_strides(const Numbers& sizes) {
  std::vector<int64_t> strides(sizes.count, 1);
  for (int64_t i = sizes.count - 1; i > 0; --i) {
    strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

// Told apart from other want of memory in Python by its words.
class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(const char* said) { std::snprintf(said_, sizeof(said_), "%s", said); }
  const char* what() const noexcept override { return said_; }

 private:
  char said_[256];
};

Refused& refused() {
  thread_local Refused last;
  return last;
}

}  // namespace

const Refused& last_refused() { return refused(); }

void refuse_value(const std::string& said) {
  refused() = {said, false};
  throw std::invalid_argument(said);
}

void refuse_memory(const std::string& said) {
  refused() = {said, true};
  throw NoMemory(said.c_str());
}

void refuse_workspace(int64_t bytes) {
  refuse_memory(text("fudlr_ext: ", bytes,
                     " bytes of workspace were asked for: the system has no more memory. Give "
                     "fewer samples at a time, or free memory"));
}

void require(AOTITorchError error, const char* call) {
  if (error != 0) throw std::runtime_error(text("fudlr_ext: ", call, " failed in torch"));
}

void put(std::string& out, Dtype dtype) {
  const auto is = [&](int32_t code) { return static_cast<int32_t>(dtype) == code; };
  out += (dtype == kFloat                     ? "Float"
          : dtype == kDouble                  ? "Double"
          : dtype == kBFloat16                ? "BFloat16"
          : dtype == kHalf                    ? "Half"
          : dtype == kChar                    ? "Char"
          : dtype == kInt                     ? "Int"
          : dtype == kLong                    ? "Long"
          : is(aoti_torch_dtype_uint8())      ? "Byte"
          : is(aoti_torch_dtype_int16())      ? "Short"
          : is(aoti_torch_dtype_bool())       ? "Bool"
          : is(aoti_torch_dtype_complex64())  ? "ComplexFloat"
          : is(aoti_torch_dtype_complex128()) ? "ComplexDouble"
                                              : "another dtype");
}

void put(std::string& out, const Device& device) {
  if (device.type == aoti_torch_device_type_cuda()) {
    out += text("cuda:", static_cast<int64_t>(device.index));
  } else {
    out += device.type == aoti_torch_device_type_cpu()    ? "cpu"
           : device.type == aoti_torch_device_type_meta() ? "meta"
                                                          : "another kind of device";
  }
}

void put(std::string& out, const Numbers& numbers) {
  out += '[';
  for (int64_t i = 0; i < numbers.count; ++i) out += text(i > 0 ? ", " : "", numbers[i]);
  out += ']';
}

Tensor::Tensor(AtenTensorHandle owned) : handle_(owned) {
  int64_t *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  require(aoti_torch_get_dim(handle_, &dim_) | aoti_torch_get_sizes(handle_, &sizes) |
              aoti_torch_get_strides(handle_, &strides) | aoti_torch_get_dtype(handle_, &dtype) |
              aoti_torch_get_device_type(handle_, &device_.type) |
              aoti_torch_get_device_index(handle_, &device_.index),
          "a look at a tensor");
  sizes_ = sizes;
  strides_ = strides;
  dtype_ = Dtype{dtype};
}

Tensor::Tensor(const Tensor& other) : Tensor() {
  if (!other.defined()) return;
  AtenTensorHandle handle = nullptr;
  require(aoti_torch_new_tensor_handle(other.handle_, &handle), "aoti_torch_new_tensor_handle");
  handle_ = handle;
  sizes_ = other.sizes_;
  strides_ = other.strides_;
  dim_ = other.dim_;
  dtype_ = other.dtype_;
  device_ = other.device_;
}

void Tensor::swap(Tensor& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(sizes_, other.sizes_);
  std::swap(strides_, other.strides_);
  std::swap(dim_, other.dim_);
  std::swap(dtype_, other.dtype_);
  std::swap(device_, other.device_);
}

int64_t Tensor::numel() const {
  int64_t count = 1;
  for (int64_t i = 0; i < dim_; ++i) count *= sizes_[i];
  return count;
}

bool Tensor::is_contiguous() const {
  bool found = false;
  require(aoti_torch_is_contiguous(handle_, &found), "aoti_torch_is_contiguous");
  return found;
}

const void* Tensor::read() const {
  const void* data = nullptr;
  require(torch_get_const_data_ptr(handle_, &data), "torch_get_const_data_ptr");
  return data;
}

void* Tensor::written() const {
  void* data = nullptr;
  require(torch_get_mutable_data_ptr(handle_, &data), "torch_get_mutable_data_ptr");
  return data;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor dense = empty(sizes(), *this);
  require(aoti_torch_copy_(dense.handle_, handle_, 0), "aoti_torch_copy_");
  return dense;
}

Tensor Tensor::viewed(const Numbers& sizes, const Numbers& strides, int64_t offset) const {
  AtenTensorHandle handle = nullptr;
  require(aoti_torch__reinterpret_tensor(handle_, sizes.count, sizes.data, strides.data, offset,
                                         &handle),
          "aoti_torch__reinterpret_tensor");
  return Tensor(handle);
}

Tensor Tensor::narrow(int64_t dim, int64_t start, int64_t length) const {
  std::vector<int64_t> sizes(sizes_, sizes_ + dim_);
  sizes[dim] = length;
  return viewed({sizes.data(), dim_}, strides(), start * strides_[dim]);
}

Tensor Tensor::transpose(int64_t first, int64_t second) const {
  std::vector<int64_t> sizes(sizes_, sizes_ + dim_), strides(strides_, strides_ + dim_);
  std::swap(sizes[first], sizes[second]);
  std::swap(strides[first], strides[second]);
  return viewed({sizes.data(), dim_}, {strides.data(), dim_});
}

Tensor empty(const Numbers& sizes, const Tensor& like, std::optional<Dtype> dtype) {
  const auto code = static_cast<int32_t>(dtype.value_or(like.scalar_type()));
  const std::vector<int64_t> strides = dense_strides(sizes);
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(code));
  for (int64_t i = 0; i < sizes.count; ++i) bytes *= sizes[i];
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(sizes.count, sizes.data, strides.data(), code, like.device().type,
                               like.device().index, &handle) != 0) {
    refuse_workspace(bytes);
  }
  Tensor made(handle);
#if defined(FUDLR_EMULATED)
  if (bytes > 0) std::memset(made.mutable_data_ptr(), 0xff, bytes);  // NaN: unwritten is seen
#endif
  return made;
}

Tensor zeros(const Numbers& sizes, const Tensor& like, std::optional<Dtype> dtype) {
  Tensor made = empty(sizes, like, dtype);
  require(aoti_torch_zero_(made.get()), "aoti_torch_zero_");
  return made;
}

}  // namespace fudlr
