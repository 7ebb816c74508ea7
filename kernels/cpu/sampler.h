#pragma once
#include <cstdint>
#include <vector>

#include "memory.h"
#include "path.h"

namespace edgemem {

// runtime/sampling.py says what they mean and where they end. log_min_p: -inf for none.
struct Sampling {
  float temperature = 0, log_min_p = 0, repetition_penalty = 1;
  double top_p = 1;
  std::uint64_t top_k = 0, seed = 0, draws = 0;  // draws: numbers of the seed's stream that are used up
};

// The sampler of runtime/sampling.py, step for step: equal logits give equal tokens.
class Sampler {
 public:
  // seen: the token ids, each below `vocabulary`, on which the repetition penalty falls.
  Sampler(const Sampling& settings, const std::vector<std::int32_t>& seen, int vocabulary, const Path& path);

  int vocabulary() const { return static_cast<int>(vocabulary_); }

  // logits: (vocabulary, padded by kLowest to whole lanes), finite; left unchanged.
  std::int32_t sample(const float* logits);

 private:
  const float* penalised(const float* logits);
  void see(std::int32_t token);
  std::int32_t draw(const float* logits, float best);
  void keep_highest(std::size_t count);
  void keep_nucleus();
  void keep_above(float least);
  void narrow();
  void weigh(float divisor);

  Sampling settings_;
  const std::size_t vocabulary_;
  const Path& path_;
  std::vector<bool> is_seen_;
  std::vector<std::int32_t> seen_;
  Floats changed_;

  // The tokens still in the draw, in order of id: what each lies under the best, and exp of that.
  std::vector<std::int32_t> ids_;
  Floats scores_, weights_;  // in whole lanes
  std::vector<std::size_t> places_;  // of ids_, chosen to stay
};

}  // namespace edgemem
