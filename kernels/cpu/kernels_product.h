// Matrix times tokens, and the int8 activations that it takes. The layout is in packed.h.
#pragma once
#include "lanes.h"
#include "packed.h"

namespace edgemem {
namespace {

using F = Lanes::F;

// How far ahead a tile is fetched: what memory delivers while a few groups are computed. Past the end of the weights
// it fetches nothing and does no harm.
constexpr std::size_t kAheadBytes = 4096;

inline void fetch(const std::uint8_t* p) { __builtin_prefetch(p + kAheadBytes, 0, 3); }

inline F load_halves(const std::uint8_t* p) { return Lanes::load_half(reinterpret_cast<const std::uint16_t*>(p)); }

// One tile of 16 rows times T tokens. The tile is read once; 2 * T accumulators stay in registers.
template <Kind kKind, bool kMinimum, int T>
void tile_quantized(const Packed& w, const Activation& x, int tile, float* out, std::size_t stride) {
  constexpr bool kNarrow = kKind == Kind::kInt4;
  constexpr std::size_t kStep = kNarrow ? 64 : 128;  // bytes of 8 columns
  constexpr bool kCentred = !kNarrow && Lanes::kSignedBytes;
  const std::uint8_t* p = w.data + static_cast<std::size_t>(tile) * w.tile_bytes();
  const std::size_t groups = static_cast<std::size_t>(w.groups()), columns = static_cast<std::size_t>(w.columns);
  const std::int8_t* codes = x.quantized.codes;
  F sums[T];
  for (F& sum : sums) sum = Lanes::zero();
  for (std::size_t g = 0; g < groups; ++g, codes += w.group) {
    Lanes::I dots[T];
    for (Lanes::I& dot : dots) dot = Lanes::all_int(0);
    for (int k = 0; k < w.group; k += 8, p += kStep) {
      for (std::size_t line = 0; line < kStep; line += 64) fetch(p + line);
      const Lanes::Codes block = kNarrow ? Lanes::load4(p) : Lanes::load8(p);
      for (std::size_t t = 0; t < T; ++t) dots[t] = Lanes::dot(dots[t], block, codes + t * columns + k);
    }
    // w = scale * (code - centre) + (minimum + centre * scale); the last term times the exact sum of the floats.
    const F scale = load_halves(p);
    F least = Lanes::zero();
    if constexpr (kMinimum) least = Lanes::fma(scale, Lanes::all(centre_of(kKind)), load_halves(p + 32));
    p += kMinimum ? 64 : 32;
    for (std::size_t t = 0; t < T; ++t) {
      const std::size_t at = t * groups + g;
      const F offset = Lanes::all(kCentred ? 0.0f : x.quantized.offsets[at]);
      const F product = Lanes::fma(Lanes::to_float(dots[t]), Lanes::all(x.quantized.scales[at]), offset);
      sums[t] = Lanes::fma(product, scale, sums[t]);
      if constexpr (kMinimum) sums[t] = Lanes::fma(least, Lanes::all(x.quantized.sums[at]), sums[t]);
    }
  }
  for (std::size_t t = 0; t < T; ++t) Lanes::store(out + t * stride + size(tile, kTileRows), sums[t]);
}

template <Kind kKind>
F load_column(const std::uint8_t* p) {
  if constexpr (kKind == Kind::kFloat) return Lanes::load(reinterpret_cast<const float*>(p));
  if constexpr (kKind == Kind::kBrain) return Lanes::load_brain(reinterpret_cast<const std::uint16_t*>(p));
  return load_halves(p);
}

template <Kind kKind, int T>
void tile_float(const Packed& w, const Activation& x, int tile, float* out, std::size_t stride) {
  constexpr std::size_t kStep = kKind == Kind::kFloat ? 64 : 32;
  const std::uint8_t* p = w.data + static_cast<std::size_t>(tile) * w.tile_bytes();
  const std::size_t columns = static_cast<std::size_t>(w.columns);
  F even[T], odd[T];
  for (int t = 0; t < T; ++t) even[t] = odd[t] = Lanes::zero();
  std::size_t k = 0;
  for (; k + 2 <= columns; k += 2, p += 2 * kStep) {
    fetch(p);
    const F first = load_column<kKind>(p), second = load_column<kKind>(p + kStep);
    for (std::size_t t = 0; t < T; ++t) {
      const float* row = x.values + t * columns + k;
      even[t] = Lanes::fma(first, Lanes::all(row[0]), even[t]);
      odd[t] = Lanes::fma(second, Lanes::all(row[1]), odd[t]);
    }
  }
  for (std::size_t t = 0; t < T; ++t) {
    if (k < columns) even[t] = Lanes::fma(load_column<kKind>(p), Lanes::all(x.values[t * columns + k]), even[t]);
    Lanes::store(out + t * stride + size(tile, kTileRows), Lanes::add(even[t], odd[t]));
  }
}

using TileKernel = void (*)(const Packed&, const Activation&, int, float*, std::size_t);

template <int T>
TileKernel tile_kernel(const Packed& w) {
  switch (w.kind) {
    case Kind::kInt4:
      return w.minimum ? tile_quantized<Kind::kInt4, true, T> : tile_quantized<Kind::kInt4, false, T>;
    case Kind::kInt8:
      return w.minimum ? tile_quantized<Kind::kInt8, true, T> : tile_quantized<Kind::kInt8, false, T>;
    case Kind::kHalf:
      return tile_float<Kind::kHalf, T>;
    case Kind::kBrain:
      return tile_float<Kind::kBrain, T>;
    default:
      return tile_float<Kind::kFloat, T>;
  }
}

void matmul(const Packed& w, const Activation& x, int tokens, float* out, std::size_t stride, int first, int last) {
  constexpr int kMost = Lanes::kTokens;
  const TileKernel most = tile_kernel<kMost>(w), four = tile_kernel<4>(w), two = tile_kernel<2>(w),
                   one = tile_kernel<1>(w);
  for (int tile = first; tile < last; ++tile)
    for (int token = 0; token < tokens;) {
      const int left = tokens - token, taken = left >= kMost ? kMost : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const TileKernel kernel = taken == kMost ? most : taken == 4 ? four : taken == 2 ? two : one;
      kernel(w, x.from(token, w), tile, out + static_cast<std::size_t>(token) * stride, stride);
      token += taken;
    }
}

// code = round(x / scale), scale = greatest |x| / 127.
void quantize(const float* x, int columns, int group, int centre, const QuantizedRows& out) {
  constexpr float kLeast = 1e-36f;  // below it 127 / greatest would overflow; such a group is all zeros
  for (int g = 0; g < columns / group; ++g) {
    const float* values = x + size(g, group);
    std::int8_t* codes = out.codes + size(g, group);
    F greatest = Lanes::zero(), sum = Lanes::zero();
    for (int k = 0; k < group; k += 16) {
      const F value = Lanes::load(values + k);
      greatest = Lanes::max(greatest, Lanes::abs(value));
      sum = Lanes::add(sum, value);
    }
    const float top = Lanes::max_of(greatest), total = Lanes::sum(sum);
    // total - total is 0 unless a value was NaN or Inf, which int8 cannot say: then the scale says it.
    const bool is_finite = total - total == 0.0f, is_zero = !is_finite || top < kLeast;
    const F inverse = Lanes::all(is_zero ? 0.0f : 127.0f / top);
    std::int32_t code_sum = 0;
    for (int k = 0; k < group; k += 16) {
      const F value = is_zero ? Lanes::zero() : Lanes::load(values + k);
      code_sum += Lanes::store_int8(codes + k, Lanes::mul(value, inverse));
    }
    out.scales[g] = !is_finite ? total - total : is_zero ? 0.0f : top / 127.0f;
    out.sums[g] = total;
    out.offsets[g] = out.scales[g] * static_cast<float>(-centre * code_sum);
  }
}

}  // namespace
}  // namespace edgemem
