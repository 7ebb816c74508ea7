#include "pack.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace edgemem {
namespace {

template <typename T>
T read_at(const std::uint8_t* base, std::size_t index) {
  T value;
  std::memcpy(&value, base + index * sizeof(T), sizeof(T));
  return value;
}

// Eight nibbles 0 1 2 3 4 5 6 7 to 0 4 1 5 2 6 3 7: byte j then holds columns j and 4 + j.
std::uint32_t interleave(std::uint32_t nibbles) {
  std::uint32_t swapped = (nibbles ^ nibbles >> 8) & 0x0000FF00;
  nibbles ^= swapped ^ swapped << 8;
  swapped = (nibbles ^ nibbles >> 4) & 0x00F000F0;
  return nibbles ^ swapped ^ swapped << 4;
}

// One row's codes of one group into lines of 64 bytes, of which a row owns four.
void pack_codes(Kind kind, const std::uint8_t* source, int group, std::uint8_t* lines) {
  const int words = group * bits_of(kind) / 32;
  for (int i = 0; i < words; ++i) {
    const std::uint32_t word = read_at<std::uint32_t>(source, static_cast<std::size_t>(i));
    const std::uint32_t placed = kind == Kind::kInt4 ? interleave(word) : word;
    std::memcpy(lines + size(i, 64), &placed, 4);
  }
}

void pack_quantized_tile(const Table& table, int first, int rows, std::uint8_t* out) {
  const std::size_t group_bytes = size(table.group, bits_of(table.kind)) / 8;
  for (int g = 0; g < table.groups(); ++g) {
    for (int r = 0; r < rows; ++r) {
      const std::size_t at = size(first + r, table.groups()) + static_cast<std::size_t>(g);
      pack_codes(table.kind, table.codes + at * group_bytes, table.group, out + size(r, 4));
    }
    out += group_bytes * kTileRows;
    for (const std::uint8_t* halves : {table.scales, table.minima}) {
      if (halves == nullptr) continue;
      for (int r = 0; r < rows; ++r) {
        const std::size_t at = size(first + r, table.groups()) + static_cast<std::size_t>(g);
        std::memcpy(out + size(r, 2), halves + at * 2, 2);
      }
      out += 2 * kTileRows;
    }
  }
}

void pack_float_tile(const Table& table, int first, int rows, std::uint8_t* out) {
  const std::size_t item = static_cast<std::size_t>(bits_of(table.kind)) / 8;
  for (int r = 0; r < rows; ++r) {
    const std::uint8_t* source = table.codes + size(first + r, table.columns) * item;
    std::uint8_t* target = out + static_cast<std::size_t>(r) * item;
    for (int k = 0; k < table.columns; ++k, source += item, target += kTileRows * item)
      std::memcpy(target, source, item);
  }
}

}  // namespace

void pack(const Table& table, std::uint8_t* out, int first, int last) {
  const std::size_t tile_bytes = table.packed().tile_bytes();
  for (int tile = first; tile < last; ++tile) {
    const int row = tile * kTileRows, rows = std::min(table.rows - row, kTileRows);
    std::uint8_t* target = out + static_cast<std::size_t>(tile) * tile_bytes;
    if (is_quantized(table.kind))
      pack_quantized_tile(table, row, rows, target);
    else
      pack_float_tile(table, row, rows, target);
  }
}

void Table::read(int row, float* out) const {
  const std::size_t start = size(row, columns);
  if (!is_quantized(kind)) {
    for (std::size_t k = 0; k < static_cast<std::size_t>(columns); ++k) {
      if (kind == Kind::kFloat)
        out[k] = read_at<float>(codes, start + k);
      else if (kind == Kind::kHalf)
        out[k] = half_to_float(read_at<std::uint16_t>(codes, start + k));
      else
        out[k] = bits_to_float(static_cast<std::uint32_t>(read_at<std::uint16_t>(codes, start + k)) << 16);
    }
    return;
  }
  const bool narrow = kind == Kind::kInt4;
  for (int g = 0; g < groups(); ++g) {
    const std::size_t at = size(row, groups()) + static_cast<std::size_t>(g);
    const std::uint8_t* source = codes + at * (size(group, bits_of(kind)) / 8);
    const float scale = half_to_float(read_at<std::uint16_t>(scales, at));
    const float least = minima ? half_to_float(read_at<std::uint16_t>(minima, at)) : 0.0f;
    const int centre = minima ? 0 : centre_of(kind);
    for (int k = 0; k < group; ++k) {
      const int code = narrow ? source[k / 2] >> (k % 2 * 4) & 15 : source[k];
      *out++ = scale * static_cast<float>(code - centre) + least;
    }
  }
}

}  // namespace edgemem
