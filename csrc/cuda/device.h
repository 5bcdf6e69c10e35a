// What a binding needs to know of the device: no CUDA header, and nothing of torch's but what its
// CPU build has as well. Under FUDLR_EMULATED (tests/emu/) the same bindings run the kernels on the
// CPU, and are registered as torch.ops.fudlr_emulated.
#pragma once

#include "abi/library.h"
#include "cuda/number.h"

// Registers the kernels of ops of `library`: fudlr, fudlr_grad or fudlr_decoder.
#if defined(FUDLR_EMULATED)
#define FUDLR_GPU_LIBRARY(library, m) FUDLR_LIBRARY_IMPL(library##_emulated, CPU, m)
#else
#define FUDLR_GPU_LIBRARY(library, m) FUDLR_LIBRARY_IMPL(library, CUDA, m)
#endif

namespace fudlr {

// Makes a tensor's device the current one for as long as it lives, and knows its current stream.
class OnDevice {
 public:
#if defined(FUDLR_EMULATED)
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& tensor) : stream_(current_stream(tensor.device().index)) {
    require(aoti_torch_create_device_guard(tensor.device().index, &guard_), "the device's guard");
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { aoti_torch_delete_device_guard(guard_); }
  void* stream() const { return stream_; }

 private:
  static void* current_stream(int32_t device);

  void* stream_;
  DeviceGuardHandle guard_ = nullptr;
#endif
};

// Room for so many numbers like those of `like`.
inline Tensor scratch(int64_t size, const Tensor& like) { return empty({size}, like); }

// Raises where a launcher was refused.
inline void check_launch(const char* op, const char* error) {
  if (error == nullptr) return;
  throw std::runtime_error(text(op, ": its kernel was to be launched: the device says ", error,
                                ". Rebuild for this GPU's architecture, or free what occupies it"));
}

// Rows one after the other with any stride, the elements of a row without a gap.
inline Tensor with_dense_rows(const Tensor& factor) {
  return factor.size(1) <= 1 || factor.stride(1) == 1 ? factor : factor.contiguous();
}

inline gpu::Number number_of(const Tensor& tensor) {
  const Dtype dtype = tensor.scalar_type();
  if (dtype == kDouble) return gpu::Number::f64;
  if (dtype == kBFloat16) return gpu::Number::bf16;
  if (dtype == kHalf) return gpu::Number::f16;
  if (dtype == kChar) return gpu::Number::int8;
  FUDLR_CHECK_VALUE(dtype == kFloat, "fudlr_ext has no GPU kernel for ", dtype);
  return gpu::Number::f32;
}

}  // namespace fudlr
