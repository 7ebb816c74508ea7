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
  module.def("read_sweep", &edgemem::read_sweep, nb::arg("bytes"), nb::arg("threads"), nb::arg("repeats"),
             nb::call_guard<nb::gil_scoped_release>());
  edgemem::bind_kernels(module);
  edgemem::bind_decoder(module);
}
