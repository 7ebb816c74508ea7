#pragma once
#include <cstdint>
#include <cstring>

namespace edgemem {
namespace {  // one copy for each instruction set that includes it

inline float bits_to_float(std::uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline float half_to_float(std::uint16_t half) {
  const bool negative = (half & 0x8000) != 0;
  const std::uint32_t rest = half & 0x7FFF;
  // Moved into float's place it is 2**112 too small; the product mends that, subnormals included.
  const float magnitude = rest >= 0x7C00 ? bits_to_float(0x7F800000 | (rest & 0x3FF) << 13)
                                         : bits_to_float(rest << 13) * 5.192296858534828e33f;
  return negative ? -magnitude : magnitude;
}

inline std::uint16_t float_to_half(float a) {
  std::uint32_t bits;
  std::memcpy(&bits, &a, 4);
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00;
  if (bits >= 0x477FF000) return sign | 0x7C00;
  if (bits < 0x38800000) {  // a subnormal half: adding 0.5 makes the float unit round to its grid of 2**-24
    const float shifted = bits_to_float(bits) + 0.5f;
    std::memcpy(&bits, &shifted, 4);
    return static_cast<std::uint16_t>(sign | (bits - 0x3F000000));
  }
  bits += 0xC8000FFF + (bits >> 13 & 1);  // rebias the exponent, round to nearest even
  return static_cast<std::uint16_t>(sign | bits >> 13);
}

}  // namespace
}  // namespace edgemem
