// What a binding needs to know of the device, from torch's device-generic c10: no CUDA header, so
// that it compiles against the CPU build of torch as well. Under FUDLR_EMULATED (tests/emu/) the
// same bindings run the kernels on the CPU, and are registered as torch.ops.fudlr_emulated.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#if defined(FUDLR_EMULATED)
#define FUDLR_GPU_LIBRARY(m) TORCH_LIBRARY_IMPL(fudlr_emulated, CPU, m)
#else
#define FUDLR_GPU_LIBRARY(m) TORCH_LIBRARY_IMPL(fudlr, CUDA, m)
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

// Raises where a launcher was refused.
inline void check_launch(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, ": its kernel was to be launched: the device says ", error,
              ". Rebuild for this GPU's architecture, or free what occupies it");
}

}  // namespace fudlr
