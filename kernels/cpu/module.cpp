#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "features.h"
#include "sweep.h"

namespace nb = nanobind;

NB_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of edgemem.";
  module.def("cpu_features", &edgemem::cpu_features);
  module.def("read_sweep", &edgemem::read_sweep, nb::arg("bytes"), nb::arg("threads"), nb::arg("repeats"),
             nb::call_guard<nb::gil_scoped_release>());
}
