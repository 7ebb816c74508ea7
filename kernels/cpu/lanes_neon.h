// Lanes by NEON with the dot-product extension: four registers.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace edgemem {
namespace {

struct Lanes {
  static constexpr int kTokens = 4;
  static constexpr int kQueries = 4;
  static constexpr bool kSignedBytes = true;  // without i8mm there is no product of unsigned with signed bytes
  struct F {
    float32x4_t v[4];
  };
  struct I {
    int32x4_t v[4];
  };
  template <typename Op>
  static F map(Op op) {
    return {{op(0), op(1), op(2), op(3)}};
  }
  static F zero() { return all(0.0f); }
  static F all(float x) {
    return map([&](int) { return vdupq_n_f32(x); });
  }
  static F load(const float* p) {
    return map([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static F load_half(const std::uint16_t* p) {
    return map([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static F load_brain(const std::uint16_t* p) {
    return map([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static F load_bytes(const std::int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
  }
  static void store(float* p, const F& a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
  }
  static void store_half(std::uint16_t* p, const F& a) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
  }
  static F add(const F& a, const F& b) {
    return map([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
  }
  static F mul(const F& a, const F& b) {
    return map([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return map([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  // By comparison and not by vmaxq and vminq, which give NaN for NaN in either place.
  static F max(const F& a, const F& b) {
    return map([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static F min(const F& a, const F& b) {
    return map([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static F div(const F& a, const F& b) {
    return map([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
  }
  static F abs(const F& a) {
    return map([&](int i) { return vabsq_f32(a.v[i]); });
  }
  static F round(const F& a) {
    return map([&](int i) { return vrndnq_f32(a.v[i]); });
  }
  // a * 2**power for whole powers from -126 to 127.
  static F scale2(const F& a, const F& power) {
    return map([&](int i) {
      const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(power.v[i]), vdupq_n_s32(127)), 23);
      return vmulq_f32(a.v[i], vreinterpretq_f32_s32(bits));
    });
  }
  static float sum(const F& a) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3])));
  }
  static float max_of(const F& a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
  }
  static bool any_above(const F& a, float b) { return max_of(a) > b; }
  static I all_int(std::int32_t x) { return {{vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}}; }
  static F to_float(const I& a) {
    return map([&](int i) { return vcvtq_f32_s32(a.v[i]); });
  }
  static std::int32_t store_int8(std::int8_t* p, const F& a) {
    int32x4_t rounded[4];
    for (int i = 0; i < 4; ++i) rounded[i] = vcvtnq_s32_f32(a.v[i]);
    const int16x8_t low = vcombine_s16(vmovn_s32(rounded[0]), vmovn_s32(rounded[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(rounded[2]), vmovn_s32(rounded[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(rounded[0], rounded[1]), vaddq_s32(rounded[2], rounded[3])));
  }

  struct Codes {
    int8x16_t low[4], high[4];
  };
  static Codes load4(const std::uint8_t* p) {
    Codes out;
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t packed = vld1q_u8(p + 16 * i);
      out.low[i] = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
      out.high[i] = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
    }
    return out;
  }
  static Codes load8(const std::uint8_t* p) {
    Codes out;
    const uint8x16_t centre = vdupq_n_u8(128);
    for (int i = 0; i < 4; ++i) {
      out.low[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), centre));
      out.high[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 64 + 16 * i), centre));
    }
    return out;
  }
  static I dot(I acc, const Codes& w, const std::int8_t* x) {
    const int8x8_t both = vld1_s8(x);
    for (int i = 0; i < 4; ++i) {
      acc.v[i] = vdotq_lane_s32(acc.v[i], w.low[i], both, 0);
      acc.v[i] = vdotq_lane_s32(acc.v[i], w.high[i], both, 1);
    }
    return acc;
  }
};

}  // namespace
}  // namespace edgemem
