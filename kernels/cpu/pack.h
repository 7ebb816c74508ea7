#pragma once
#include "packed.h"

namespace edgemem {

// A matrix in the package's own layout (kernels/formats.py), mapped and not copied.
struct Table {
  Kind kind = Kind::kFloat;
  int rows = 0, columns = 0, group = 0;
  const std::uint8_t* codes = nullptr;   // quantised: (rows, groups, group * bits / 8); float: (rows, columns) values
  const std::uint8_t* scales = nullptr;  // fp16 (rows, groups); like all of these perhaps unaligned
  const std::uint8_t* minima = nullptr;  // fp16 (rows, groups) or null

  int groups() const { return group ? columns / group : 0; }
  Packed packed() const { return {kind, rows, columns, group, minima != nullptr, nullptr}; }
  void read(int row, float* out) const;  // one row, dequantised
};

// Writes tiles [first, last) of the table as Packed has them to `out`, the place of tile 0.
void pack(const Table& table, std::uint8_t* out, int first, int last);

}  // namespace edgemem
