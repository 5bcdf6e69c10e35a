// The stream in use, which torch's library for CUDA devices knows. A torch without CUDA has no such
// library, so it is looked for at run time, among those that are loaded: a tensor on a device says
// that it is.
#include <dlfcn.h>

#include "cuda/device.h"

#if !defined(FUDLR_EMULATED)

namespace fudlr {

void* OnDevice::current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t device_index, void** ret_stream);
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    if (found == nullptr) throw std::runtime_error("fudlr_ext: torch's CUDA library is not loaded");
    return reinterpret_cast<Get>(found);
  }();
  void* stream = nullptr;
  require(get(device, &stream), "aoti_torch_get_current_cuda_stream");
  return stream;
}

}  // namespace fudlr

#endif
