#pragma once
#include <cstddef>
#include <cstdint>

#include "memory.h"

namespace edgemem {

enum class Kind : int { kInt4 = 0, kInt8 = 1, kHalf = 2, kBrain = 3, kFloat = 4 };

constexpr bool is_quantized(Kind kind) { return kind == Kind::kInt4 || kind == Kind::kInt8; }
constexpr int bits_of(Kind kind) {
  return kind == Kind::kInt4 ? 4 : kind == Kind::kInt8 ? 8 : kind == Kind::kFloat ? 32 : 16;
}
// The code that stands for zero in a symmetric matrix.
constexpr int centre_of(Kind kind) { return kind == Kind::kInt4 ? 8 : 128; }

constexpr int kTileRows = 16;

// A (rows, columns) matrix in tiles of 16 rows, each tile one stream that is read front to back.
// Quantised: for every group of columns the codes (int4: 64 bytes for 8 columns, four bytes a row, low nibbles columns
// 0-3, high 4-7; int8: 128 bytes for 8 columns, columns 0-3 of all rows first), then 16 fp16 scales, then, where there
// are any, 16 fp16 minima. Float: 16 values for every column. Rows past the end are zeros.
struct Packed {
  Kind kind = Kind::kFloat;
  int rows = 0, columns = 0, group = 0;
  bool minimum = false;
  const std::uint8_t* data = nullptr;

  int tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int groups() const { return group ? columns / group : 0; }
  std::size_t tile_bytes() const {
    return size(columns, bits_of(kind)) * kTileRows / 8 + size(groups(), (minimum ? 4 : 2) * kTileRows);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(tiles()) * tile_bytes(); }
};

// Rows of int8 in groups: value = scale * code. For a product with codes around `centre`, exact in the minima.
struct QuantizedRows {
  std::int8_t* codes;  // (tokens, columns)
  float* scales;       // (tokens, groups)
  float* sums;         // (tokens, groups): of the floats, not of what the codes stand for
  float* offsets;      // (tokens, groups): -centre * scale * sum of codes
};

// The inputs of a product: (tokens, columns) floats and, for a quantised matrix, the same as int8 in its groups.
struct Activation {
  const float* values;
  QuantizedRows quantized;

  // The same from token `first` on, as inputs of `w`.
  Activation from(int first, const Packed& w) const {
    const std::size_t row = size(first, w.columns), group_row = size(first, w.groups());
    if (!is_quantized(w.kind)) return {values + row, {}};
    return {values + row,
            {quantized.codes + row, quantized.scales + group_row, quantized.sums + group_row,
             quantized.offsets + group_row}};
  }
};

}  // namespace edgemem
