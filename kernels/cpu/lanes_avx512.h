// Lanes by AVX-512 with VNNI: one register.
#pragma once
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace edgemem {
namespace {

struct Lanes {
  static constexpr int kTokens = 8;            // of a matrix product's register tile
  static constexpr int kQueries = 12;          // attended to together
  static constexpr bool kSignedBytes = false;  // whether load8 gives codes less 128
  using F = __m512;
  using I = __m512i;
  static F zero() { return _mm512_setzero_ps(); }
  static F all(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_half(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_brain(const std::uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static F load_bytes(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static void store_half(std::uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
  static F scale2(F a, F power) { return _mm512_scalef_ps(a, power); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float max_of(F a) { return _mm512_reduce_max_ps(a); }
  static bool any_above(F a, float b) { return _mm512_cmp_ps_mask(a, all(b), _CMP_GT_OQ) != 0; }
  static I all_int(std::int32_t x) { return _mm512_set1_epi32(x); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  // Rounded lanes to int8; gives their sum.
  static std::int32_t store_int8(std::int8_t* p, F a) {
    const I rounded = _mm512_cvtps_epi32(a);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(rounded));
    return _mm512_reduce_add_epi32(rounded);
  }

  // Eight columns of sixteen rows of codes: low holds columns 0-3, high 4-7, four bytes a row.
  struct Codes {
    __m512i low, high;
  };
  static Codes load4(const std::uint8_t* p) {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i packed = _mm512_loadu_si512(p);
    return {_mm512_and_si512(packed, mask), _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask)};
  }
  static Codes load8(const std::uint8_t* p) { return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)}; }
  static I dot(I acc, const Codes& w, const std::int8_t* x) {
    std::int32_t first, second;
    std::memcpy(&first, x, 4);
    std::memcpy(&second, x + 4, 4);
    acc = _mm512_dpbusd_epi32(acc, w.low, _mm512_set1_epi32(first));
    return _mm512_dpbusd_epi32(acc, w.high, _mm512_set1_epi32(second));
  }
};

}  // namespace
}  // namespace edgemem
