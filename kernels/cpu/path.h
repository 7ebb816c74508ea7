#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "packed.h"

namespace edgemem {

constexpr int kMostHeadDim = 512;

// One KV head's memory in one layer. Keys lie in blocks of 16 slots, dimension by dimension, so that 16 scores are
// computed at once without a sum across lanes; values lie slot by slot, padded to whole lanes.
// With scales both are int8 and slot s stands for scale[s] * code, else they are fp16.
struct KvHead {
  const void* keys;    // (capacity / 16, head_dim, 16)
  const void* values;  // (capacity, value_stride)
  const float* key_scales;    // (capacity) or null
  const float* value_scales;  // (capacity) or null
  int head_dim;
  int value_stride;  // head_dim rounded up to 16
};

// One query head of one token over slots [begin, end). Softmax not yet divided, so that shares of the slots can be
// merged: output is the sum of exp(score - top) * value, total that of exp(score - top).
struct Query {
  const float* vector;  // (head_dim), already scaled
  int begin, end;
  float* output;  // (value_stride)
  float top, total;
};

constexpr float kLowest = -3e38f;  // the score of what is left out; less than this minus itself stays finite

// What an instruction set offers: the same source, compiled for each; all agree within rounding.
// Where it says "whole lanes", the length is a multiple of 16.
struct Path {
  const char* name;
  int queries;  // as many as `attend` likes to take at once

  // out[token * stride + row] for tiles [first, last) of 16 rows.
  void (*matmul)(const Packed& w, const Activation& x, int tokens, float* out, std::size_t stride, int first, int last);
  // One row into int8 in groups of a multiple of 16; a group that holds NaN or Inf gets the scale NaN.
  void (*quantize)(const float* x, int columns, int group, int centre, const QuantizedRows& out);
  // y = x / rms(x) * weight, any length; y may be x.
  void (*rms_norm)(const float* x, const float* weight, int n, float epsilon, float* y);
  // Pairs (i, i + pairs) turned by their angles, any length.
  void (*rotate)(float* x, const float* cosines, const float* sines, int pairs);
  // Sixteen fp16 keys into one block, of whose slots some may be sources; a key's dimensions lie 16 apart there and here.
  // Pair i of key k is turned by the angle of cosines[i * 16 + k], dimensions beyond the pairs stay.
  void (*turn_keys)(const std::uint16_t* const* sources, const float* cosines, const float* sines, int pairs,
                    int head_dim, std::uint16_t* out);
  // gate = act(gate) * up, whole lanes; act is SiLU, or GELU by tanh.
  void (*gated)(float* gate, const float* up, int n, bool gelu);
  // Scores and values of all slots of the queries' ranges, which overlap; starts each query anew.
  void (*attend)(const KvHead& kv, Query* queries, int count, float softcap);
  void (*to_half)(const float* x, int n, std::uint16_t* y);  // whole lanes
  // y = exp((x - shift) / divisor), whole lanes, shift at least the greatest x.
  void (*exponentials)(const float* x, int n, float shift, float divisor, float* y);
  void (*softcap)(float* x, int n, float cap);  // x = cap * tanh(x / cap), whole lanes
  float (*greatest)(const float* x, int n);     // whole lanes
  float (*log_sum_exp)(const float* x, int n);  // whole lanes
  bool (*finite)(const float* x, int n);        // any length
};

const Path* plain_path();
const Path* avx2_path();    // null where not built, as those below
const Path* avx512_path();
const Path* neon_path();

// The paths that this processor can run, the fastest first.
std::vector<const Path*> runnable_paths();

// One of them by name, or "auto"; throws std::invalid_argument for a path that cannot run here.
const Path& choose_path(const std::string& name);

}  // namespace edgemem
