// Kernels over one row of floats: exponential, norm, rotation, gate, reductions.
#pragma once
#include <cmath>
#include <initializer_list>

#include "lanes.h"

namespace edgemem {
namespace {

using F = Lanes::F;

// e**x as 2**n * p(r), r within ln(2) / 2 of 0, by Cody and Waite's reduction and a polynomial of degree 6. Within 2 units
// in the last place from -87 to 88 and clamped outside; NaN stays NaN, as the second argument of max and min.
inline F exponential(F x) {
  x = Lanes::min(Lanes::all(88.0f), Lanes::max(Lanes::all(-87.0f), x));
  const F n = Lanes::round(Lanes::mul(x, Lanes::all(1.44269504f)));
  F r = Lanes::fma(n, Lanes::all(-0.693359375f), x);
  r = Lanes::fma(n, Lanes::all(2.12194440e-4f), r);
  F p = Lanes::all(1.9875691e-4f);
  for (float c : {1.3981999e-3f, 8.3334519e-3f, 4.1665795e-2f, 1.6666665e-1f, 5.0000001e-1f})
    p = Lanes::fma(p, r, Lanes::all(c));
  p = Lanes::fma(Lanes::mul(r, r), p, Lanes::add(r, Lanes::all(1.0f)));
  return Lanes::scale2(p, n);
}

void rms_norm(const float* x, const float* weight, int n, float epsilon, float* y) {
  const int whole = n / 16 * 16;
  F lanes = Lanes::zero();
  for (int k = 0; k < whole; k += 16) lanes = Lanes::fma(Lanes::load(x + k), Lanes::load(x + k), lanes);
  float squares = Lanes::sum(lanes);
  for (int k = whole; k < n; ++k) squares += x[k] * x[k];
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon);
  for (int k = 0; k < whole; k += 16)
    Lanes::store(y + k, Lanes::mul(Lanes::mul(Lanes::load(x + k), Lanes::all(scale)), Lanes::load(weight + k)));
  for (int k = whole; k < n; ++k) y[k] = x[k] * scale * weight[k];
}

void rotate(float* x, const float* cosines, const float* sines, int pairs) {
  float* z = x + pairs;
  const int whole = pairs / 16 * 16;
  for (int i = 0; i < whole; i += 16) {
    const F a = Lanes::load(x + i), b = Lanes::load(z + i), cosine = Lanes::load(cosines + i);
    const F sine = Lanes::load(sines + i), minus = Lanes::mul(sine, Lanes::all(-1.0f));
    Lanes::store(x + i, Lanes::fma(a, cosine, Lanes::mul(b, minus)));
    Lanes::store(z + i, Lanes::fma(b, cosine, Lanes::mul(a, sine)));
  }
  for (int i = whole; i < pairs; ++i) {
    const float a = x[i], b = z[i];
    x[i] = a * cosines[i] - b * sines[i];
    z[i] = b * cosines[i] + a * sines[i];
  }
}

inline F gathered(const std::uint16_t* const* sources, int offset) {
  alignas(32) std::uint16_t halves[16];
  for (int lane = 0; lane < 16; ++lane) halves[lane] = sources[lane][offset];
  return Lanes::load_half(halves);
}

void turn_keys(const std::uint16_t* const* sources, const float* cosines, const float* sines, int pairs, int head_dim,
               std::uint16_t* out) {
  for (int i = 0; i < pairs; ++i) {
    const F a = gathered(sources, i * 16), b = gathered(sources, (i + pairs) * 16);
    const F cosine = Lanes::load(cosines + i * 16), sine = Lanes::load(sines + i * 16);
    const F minus = Lanes::mul(sine, Lanes::all(-1.0f));
    Lanes::store_half(out + i * 16, Lanes::fma(a, cosine, Lanes::mul(b, minus)));
    Lanes::store_half(out + (i + pairs) * 16, Lanes::fma(b, cosine, Lanes::mul(a, sine)));
  }
  for (int d = 2 * pairs; d < head_dim; ++d) Lanes::store_half(out + d * 16, gathered(sources, d * 16));
}

// SiLU(g) = g * sigmoid(g); GELU by tanh is g * sigmoid(2 * sqrt(2 / pi) * (g + 0.044715 g**3)).
void gated(float* gate, const float* up, int n, bool gelu) {
  const F one = Lanes::all(1.0f);
  for (int k = 0; k < n; k += 16) {
    const F g = Lanes::load(gate + k);
    F z = g;
    if (gelu) {
      const F cube = Lanes::mul(Lanes::mul(g, g), g);
      z = Lanes::mul(Lanes::fma(cube, Lanes::all(0.044715f), g), Lanes::all(1.5957691216f));
    }
    const F sigmoid = Lanes::div(one, Lanes::add(one, exponential(Lanes::mul(z, Lanes::all(-1.0f)))));
    Lanes::store(gate + k, Lanes::mul(Lanes::mul(g, sigmoid), Lanes::load(up + k)));
  }
}

void to_half(const float* x, int n, std::uint16_t* y) {
  for (int k = 0; k < n; k += 16) Lanes::store_half(y + k, Lanes::load(x + k));
}

void exponentials(const float* x, int n, float shift, float divisor, float* y) {
  for (int k = 0; k < n; k += 16) {
    const F score = Lanes::add(Lanes::load(x + k), Lanes::all(-shift));
    Lanes::store(y + k, exponential(Lanes::div(score, Lanes::all(divisor))));
  }
}

// cap * tanh(x / cap), tanh(z) = 1 - 2 / (e**2z + 1).
inline F softcapped(F x, float cap) {
  const F e = exponential(Lanes::mul(x, Lanes::all(2.0f / cap)));
  const F tanh = Lanes::add(Lanes::all(1.0f), Lanes::div(Lanes::all(-2.0f), Lanes::add(e, Lanes::all(1.0f))));
  return Lanes::mul(tanh, Lanes::all(cap));
}

void softcap(float* x, int n, float cap) {
  for (int k = 0; k < n; k += 16) Lanes::store(x + k, softcapped(Lanes::load(x + k), cap));
}

float greatest(const float* x, int n) {
  F top = Lanes::load(x);
  for (int k = 16; k < n; k += 16) top = Lanes::max(top, Lanes::load(x + k));
  return Lanes::max_of(top);
}

float log_sum_exp(const float* x, int n) {
  const float top = greatest(x, n);
  F total = Lanes::zero();
  for (int k = 0; k < n; k += 16)
    total = Lanes::add(total, exponential(Lanes::add(Lanes::load(x + k), Lanes::all(-top))));
  return top + std::log(Lanes::sum(total));
}

bool finite(const float* x, int n) {
  const int whole = n / 16 * 16;
  F zeros = Lanes::zero();  // 0 * x is 0 but for NaN and Inf
  for (int k = 0; k < whole; k += 16) zeros = Lanes::fma(Lanes::load(x + k), Lanes::zero(), zeros);
  float rest = Lanes::sum(zeros);
  for (int k = whole; k < n; ++k) rest += 0.0f * x[k];
  return rest == 0.0f;
}

}  // namespace
}  // namespace edgemem
