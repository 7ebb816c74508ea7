// Lanes in plain C++, for processors without a path of their own; also what the others are tested against.
#pragma once
#include <cstdint>
#include <cstring>

#include "half.h"

namespace edgemem {
namespace {

struct Lanes {
  static constexpr int kTokens = 4;
  static constexpr int kQueries = 4;
  static constexpr bool kSignedBytes = false;
  struct F {
    float v[16];
  };
  struct I {
    std::int32_t v[16];
  };
  template <typename Op>
  static F map(Op op) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = op(i);
    return out;
  }
  static F zero() { return all(0.0f); }
  static F all(float x) {
    return map([&](int) { return x; });
  }
  static F load(const float* p) {
    return map([&](int i) { return p[i]; });
  }
  static F load_half(const std::uint16_t* p) {
    return map([&](int i) { return half_to_float(p[i]); });
  }
  static F load_brain(const std::uint16_t* p) {
    return map([&](int i) { return bits_to_float(static_cast<std::uint32_t>(p[i]) << 16); });
  }
  static F load_bytes(const std::int8_t* p) {
    return map([&](int i) { return static_cast<float>(p[i]); });
  }
  static void store(float* p, const F& a) {
    for (int i = 0; i < 16; ++i) p[i] = a.v[i];
  }
  static void store_half(std::uint16_t* p, const F& a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
  }
  static F add(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F mul(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F max(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F min(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F div(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F abs(const F& a) {
    return map([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
  }
  static F round(const F& a) {
    return map([&](int i) { return round_even(a.v[i]); });
  }
  static F scale2(const F& a, const F& power) {
    return map([&](int i) {
      return a.v[i] * bits_to_float(static_cast<std::uint32_t>(static_cast<std::int32_t>(power.v[i]) + 127) << 23);
    });
  }
  static float sum(const F& a) {
    float total = 0;
    for (float x : a.v) total += x;
    return total;
  }
  static float max_of(const F& a) {
    float best = a.v[0];
    for (float x : a.v) best = x > best ? x : best;
    return best;
  }
  static bool any_above(const F& a, float b) { return max_of(a) > b; }
  static I all_int(std::int32_t x) {
    I out;
    for (std::int32_t& lane : out.v) lane = x;
    return out;
  }
  static F to_float(const I& a) {
    return map([&](int i) { return static_cast<float>(a.v[i]); });
  }
  static std::int32_t store_int8(std::int8_t* p, const F& a) {
    std::int32_t total = 0;
    for (int i = 0; i < 16; ++i) {
      p[i] = static_cast<std::int8_t>(round_even(a.v[i]));
      total += p[i];
    }
    return total;
  }

  struct Codes {
    const std::uint8_t* p;
    bool wide;
  };
  static Codes load4(const std::uint8_t* p) { return {p, false}; }
  static Codes load8(const std::uint8_t* p) { return {p, true}; }
  static I dot(I acc, const Codes& w, const std::int8_t* x) {
    for (int row = 0; row < 16; ++row)
      for (int j = 0; j < 4; ++j) {
        const std::uint8_t byte = w.p[row * 4 + j];
        const std::int32_t low = w.wide ? byte : byte & 15, high = w.wide ? w.p[64 + row * 4 + j] : byte >> 4;
        acc.v[row] += low * x[j] + high * x[4 + j];
      }
    return acc;
  }

 private:
  // Adding and taking away 1.5 * 2**23 leaves the nearest whole number, ties to even; for |a| < 2**22.
  static float round_even(float a) {
    volatile float shifted = a + 12582912.0f;
    return shifted - 12582912.0f;
  }
};

}  // namespace
}  // namespace edgemem
