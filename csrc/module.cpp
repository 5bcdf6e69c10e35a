// The Python module _C: what was built, and the instruction set in use. Importing it registers the
// ops with torch's dispatcher (schemas.cpp), which are then torch.ops.fudlr.*. It keeps to Python's
// stable ABI, so that one library serves every Python since 3.11.
#include <Python.h>

#include <stdexcept>
#include <string_view>

#include "abi/errors.h"
#include "cpu/isa.h"

namespace {

PyObject* devices(PyObject*, PyObject*) {
#ifdef FUDLR_WITH_CUDA
  return Py_BuildValue("[ss]", "cpu", "cuda");
#else
  return Py_BuildValue("[s]", "cpu");
#endif
}

PyObject* cuda_architectures(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
#ifdef FUDLR_WITH_CUDA
  for (const char* built : {FUDLR_CUDA_BUILT}) {
    PyObject* name = names == nullptr ? nullptr : PyUnicode_FromString(built);
    if (name == nullptr || PyList_Append(names, name) < 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
#endif
  return names;
}

PyObject* built_isas(PyObject*, PyObject*) { return PyUnicode_FromString(FUDLR_ISAS); }

// What `run` returns; a ValueError where it has an argument to refuse.
template <typename Run>
PyObject* with_errors(Run run) {
  try {
    return run();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyObject* isa(PyObject*, PyObject*) {
  return with_errors([] { return PyUnicode_FromString(fudlr::isa_name(fudlr::active_isa())); });
}

PyObject* set_isa(PyObject*, PyObject* name) {
  const char* wanted = PyUnicode_AsUTF8AndSize(name, nullptr);
  if (wanted == nullptr) return nullptr;
  return with_errors([&] {
    fudlr::set_isa(wanted);
    return Py_NewRef(Py_None);
  });
}

// What an error that torch raised with this message was when it was thrown.
PyObject* error_type(PyObject*, PyObject* message) {
  Py_ssize_t size = 0;
  const char* found = PyUnicode_AsUTF8AndSize(message, &size);
  if (found == nullptr) return nullptr;
  const fudlr::Refused& last = fudlr::last_refused();
  const bool ours = !last.said.empty() && std::string_view(found, size).starts_with(last.said);
  return Py_NewRef(!ours ? PyExc_RuntimeError : last.memory ? PyExc_MemoryError : PyExc_ValueError);
}

PyMethodDef methods[] = {
    {"devices", devices, METH_NOARGS, "Devices that kernels were built for"},
    {"cuda_architectures", cuda_architectures, METH_NOARGS,
     "GPU architectures that kernels were built for (sm_…), and their PTX (compute_…)"},
    {"built_isas", built_isas, METH_NOARGS,
     "Instruction sets that the CPU kernels were compiled for, comma separated"},
    {"isa", isa, METH_NOARGS, "Instruction set that the CPU kernels run with"},
    {"set_isa", set_isa, METH_O,
     "Run the CPU kernels with another instruction set that was built and that this CPU has"},
    {"error_type", error_type, METH_O,
     "The type of the error with which an op refused its arguments last, by its message"},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C",
                          "Build information of fudlr_ext; the ops are torch.ops.fudlr.*",
                          0,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
