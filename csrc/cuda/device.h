// What a binding needs to know of the device, from torch's device-generic c10: no CUDA header, so
// that it compiles against the CPU build of torch as well. Under FUDLR_EMULATED (tests/emu/) the
// same bindings run the kernels on the CPU, and are registered as torch.ops.fudlr_emulated.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "cuda/number.h"

// Registers the kernels of ops of `library`: fudlr, fudlr_grad or fudlr_decoder.
#if defined(FUDLR_EMULATED)
#define FUDLR_GPU_LIBRARY(library, m) TORCH_LIBRARY_IMPL(library##_emulated, CPU, m)
#else
#define FUDLR_GPU_LIBRARY(library, m) TORCH_LIBRARY_IMPL(library, CUDA, m)
#endif

namespace fudlr {

// Makes a tensor's device the current one for as long as it lives, and knows its current stream.
class OnDevice {
 public:
#if defined(FUDLR_EMULATED)
  explicit OnDevice(const at::Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit OnDevice(const at::Tensor& tensor) : guard_(tensor.device()), device_(tensor.device()) {}
  void* stream() const {
    return c10::impl::getDeviceGuardImpl(device_.type())->getStream(device_).native_handle();
  }

 private:
  c10::DeviceGuard guard_;
  c10::Device device_;
#endif
};

// Room for so many numbers like those of `like`.
inline at::Tensor scratch(int64_t size, const at::Tensor& like) {
  return at::empty({size}, like.options());
}

// Raises where a launcher was refused.
inline void check_launch(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, ": its kernel was to be launched: the device says ", error,
              ". Rebuild for this GPU's architecture, or free what occupies it");
}

// Rows one after the other with any stride, the elements of a row without a gap.
inline at::Tensor with_dense_rows(const at::Tensor& factor) {
  return factor.size(1) <= 1 || factor.stride(1) == 1 ? factor : factor.contiguous();
}

inline gpu::Number number_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return gpu::Number::f64;
    case at::kBFloat16:
      return gpu::Number::bf16;
    case at::kHalf:
      return gpu::Number::f16;
    case at::kChar:
      return gpu::Number::int8;
    case at::kFloat:
      return gpu::Number::f32;
    default:
      TORCH_CHECK_VALUE(false, "fudlr_ext has no GPU kernel for ", tensor.scalar_type());
  }
}

}  // namespace fudlr
