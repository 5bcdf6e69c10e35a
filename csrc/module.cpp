// The pybind11 module _C: what was built, for which devices, and thread control. The ops
// themselves are registered with torch's dispatcher (schemas.cpp) and reached as torch.ops.fudlr.*.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

namespace {

std::vector<std::string> devices() {
  std::vector<std::string> built{"cpu"};
#ifdef FUDLR_WITH_CUDA
  built.emplace_back("cuda");
#endif
  return built;
}

std::vector<std::string> cuda_architectures() {
#ifdef FUDLR_WITH_CUDA
  return {FUDLR_CUDA_BUILT};
#else
  return {};
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and thread control of fudlr_ext; the ops are torch.ops.fudlr.*";
  m.attr("torch_version") = FUDLR_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("devices", &devices, "Devices that kernels were built for");
  m.def("cuda_architectures", &cuda_architectures,
        "GPU architectures that kernels were built for (sm_…), and their PTX (compute_…)");
  m.def(
      "built_isas", [] { return std::string(FUDLR_ISAS); },
      "Instruction sets that the CPU kernels were compiled for, comma separated");
  m.def(
      "isa", [] { return std::string(fudlr::isa_name(fudlr::active_isa())); },
      "Instruction set that the CPU kernels run with");
  m.def(
      "set_isa", [](const std::string& name) { fudlr::set_isa(name); }, pybind11::arg("name"),
      "Run the CPU kernels with another instruction set that was built and that this CPU has");
  m.def("get_num_threads", &at::get_num_threads, "Threads that the CPU kernels use (torch's own)");
  m.def("set_num_threads", &at::set_num_threads, pybind11::arg("threads"),
        "Set the threads that the CPU kernels use (torch's own)");
}
