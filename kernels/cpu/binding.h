// What the bindings share: array types, and how they refuse. Everything that Python hands over is checked here and in
// binding_*.cpp, once; behind them sizes are trusted. std::invalid_argument arrives in Python as ValueError.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "pack.h"

namespace edgemem {

namespace nb = nanobind;

template <typename T, int kRank>
using Array = nb::ndarray<T, nb::ndim<kRank>, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

template <typename T>
void require(bool holds, const std::string& what, const T& got) {
  if (!holds) refuse(what + ", got " + std::to_string(got));
}

// A Table over arrays that Python owns; it keeps them alive.
struct GivenTable {
  GivenTable(int kind, int rows, int columns, int group, Array<const std::uint8_t, 1> given_codes,
             nb::object given_scales, nb::object given_minima);

  Table table;
  nb::object codes, scales, minima;
};

void bind_kernels(nb::module_& module);
void bind_decoder(nb::module_& module);

// What Python gave as a C++ value; a type error for anything else.
template <typename Wanted>
Wanted value_of(nb::handle given, const char* what) {
  Wanted value{};
  if (!nb::try_cast(given, value)) throw nb::type_error((std::string(what) + " is of another type").c_str());
  return value;
}

// What Python gave as an array of this type and rank; a type error that says what was wanted for anything else.
template <typename Wanted>
Wanted array_of(nb::handle given, const char* what) {
  Wanted array;
  if (!nb::try_cast(given, array, false))  // a copy would be filled in vain
    throw nb::type_error((std::string(what) + ": no contiguous array of the type wanted").c_str());
  return array;
}

}  // namespace edgemem
