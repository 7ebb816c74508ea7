#pragma once
#include <vector>

#include "memory.h"

namespace edgemem {

// Dimensions and constants of the layers held; runtime/model.py says what they mean. Softcaps are 0 for none.
struct Shape {
  int hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  float norm_epsilon = 0, attention_scale = 0, embedding_scale = 1, attention_softcap = 0, logit_softcap = 0;
  bool gelu = false;
  bool has_embedding = true, has_head = true;

  int query_rows() const { return heads * head_dim; }
  int key_rows() const { return kv_heads * head_dim; }
  int group() const { return heads / kv_heads; }  // query heads over one KV head
};

struct Rope {
  std::vector<float> inverse_frequencies;
  float amplitude = 1;

  int pairs() const { return static_cast<int>(inverse_frequencies.size()); }
};

// One layer; Matrix is Table as it is given, Packed as it is used. Vectors that the model lacks are empty.
template <typename Matrix>
struct Layer {
  Matrix query, key, value, output, gate, up, down;
  Floats attention_norm, mlp_norm, attention_post_norm, mlp_post_norm, query_norm, key_norm;
  Floats query_bias, key_bias, value_bias, output_bias;
  int rope = 0;    // which of the model's
  int window = 0;  // slots, 0 for all
};

}  // namespace edgemem
