// Lanes by AVX2, FMA and F16C: two registers.
#pragma once
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace edgemem {
namespace {

struct Lanes {
  static constexpr int kTokens = 4;
  static constexpr int kQueries = 4;
  static constexpr bool kSignedBytes = false;
  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };
  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F load_half(const std::uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static F load_brain(const std::uint16_t* p) {
    auto half = [](const std::uint16_t* q) {
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q))), 16));
    };
    return {half(p), half(p + 8)};
  }
  static F load_bytes(const std::int8_t* p) {
    auto half = [](const std::int8_t* q) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q))));
    };
    return {half(p), half(p + 8)};
  }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static void store_half(std::uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static F round(F x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
  }
  // a * 2**power for whole powers from -126 to 127.
  static F scale2(F x, F power) {
    auto half = [](__m256 value, __m256 exponent) {
      const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127)), 23);
      return _mm256_mul_ps(value, _mm256_castsi256_ps(bits));
    };
    return {half(x.a, power.a), half(x.b, power.b)};
  }
  static float sum(F x) {
    const __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
  }
  static float max_of(F x) {
    const __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
  }
  static bool any_above(F x, float y) { return max_of(x) > y; }
  static I all_int(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static std::int32_t store_int8(std::int8_t* p, F x) {
    alignas(32) std::int32_t lanes[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_cvtps_epi32(x.a));
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 8), _mm256_cvtps_epi32(x.b));
    std::int32_t total = 0;
    for (int i = 0; i < 16; ++i) {
      p[i] = static_cast<std::int8_t>(lanes[i]);
      total += lanes[i];
    }
    return total;
  }

  struct Codes {
    __m256i low_a, low_b, high_a, high_b;
    bool wide;  // codes over 15: their products would overflow int16
  };
  static Codes load4(const std::uint8_t* p) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    return {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask), _mm256_and_si256(_mm256_srli_epi16(a, 4), mask),
            _mm256_and_si256(_mm256_srli_epi16(b, 4), mask), false};
  }
  static Codes load8(const std::uint8_t* p) {
    auto at = [p](int offset) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + offset)); };
    return {at(0), at(32), at(64), at(96), true};
  }
  static __m256i dot_narrow(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
  }
  // u8 x s8 without overflow: even and odd bytes apart, as int16.
  static __m256i dot_wide(__m256i w, __m256i x) {
    const __m256i even_w = _mm256_and_si256(w, _mm256_set1_epi16(255)), odd_w = _mm256_srli_epi16(w, 8);
    const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd_x = _mm256_srai_epi16(x, 8);
    return _mm256_add_epi32(_mm256_madd_epi16(even_w, even_x), _mm256_madd_epi16(odd_w, odd_x));
  }
  static I dot(I acc, const Codes& w, const std::int8_t* x) {
    std::int32_t first, second;
    std::memcpy(&first, x, 4);
    std::memcpy(&second, x + 4, 4);
    const __m256i x0 = _mm256_set1_epi32(first), x1 = _mm256_set1_epi32(second);
    if (w.wide) {
      acc.a = _mm256_add_epi32(acc.a, _mm256_add_epi32(dot_wide(w.low_a, x0), dot_wide(w.high_a, x1)));
      acc.b = _mm256_add_epi32(acc.b, _mm256_add_epi32(dot_wide(w.low_b, x0), dot_wide(w.high_b, x1)));
    } else {
      acc.a = _mm256_add_epi32(acc.a, _mm256_add_epi32(dot_narrow(w.low_a, x0), dot_narrow(w.high_a, x1)));
      acc.b = _mm256_add_epi32(acc.b, _mm256_add_epi32(dot_narrow(w.low_b, x0), dot_narrow(w.high_b, x1)));
    }
    return acc;
  }
};

}  // namespace
}  // namespace edgemem
