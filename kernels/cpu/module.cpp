#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "binding.h"
#include "features.h"
#include "sweep.h"

NB_MODULE(_native, module) {
  namespace nb = nanobind;
  nb::set_leak_warnings(false);  // an engine that nobody closed dies with the process
  module.doc() = "Native CPU kernels of edgemem.";
  module.def("cpu_features", &edgemem::cpu_features);
  using edgemem::Sweep;
  const nb::call_guard<nb::gil_scoped_release> without_gil;
  nb::class_<Sweep>(module, "Sweep")
      .def(nb::init<std::size_t, int>(), nb::arg("bytes"), nb::arg("threads"), without_gil)
      .def_prop_ro("bytes", &Sweep::bytes)
      .def("read", &Sweep::read, nb::arg("passes"), without_gil)
      .def("copy", &Sweep::copy, nb::arg("passes"), without_gil);
  edgemem::bind_kernels(module);
  edgemem::bind_decoder(module);
}
