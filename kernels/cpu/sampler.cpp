#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace edgemem {
namespace {

// Number `draw` of the stream `seed`, in [0, 1); see uniform in runtime/sampling.py.
double uniform(std::uint64_t seed, std::uint64_t draw) {
  std::uint64_t mixed = seed + (draw + 1) * 0x9E3779B97F4A7C15ULL;
  mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9ULL;
  mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBULL;
  return static_cast<double>((mixed ^ mixed >> 31) >> 11) * 0x1p-53;
}

}  // namespace

Sampler::Sampler(const Sampling& settings, const std::vector<std::int32_t>& seen, int vocabulary, const Path& path)
    : settings_(settings), vocabulary_(static_cast<std::size_t>(vocabulary)), path_(path) {
  const std::size_t lanes = static_cast<std::size_t>(round_up(vocabulary, 16));
  if (settings_.repetition_penalty != 1.0f) {
    is_seen_.resize(vocabulary_);
    changed_ = Floats(lanes);
    for (std::int32_t token : seen) see(token);
  }
  if (settings_.temperature > 0) {
    scores_ = Floats(lanes);
    weights_ = Floats(lanes);
  }
}

std::int32_t Sampler::sample(const float* logits) {
  logits = penalised(logits);
  const float best = path_.greatest(logits, round_up(static_cast<int>(vocabulary_), 16));
  const std::int32_t token = settings_.temperature > 0
                                 ? draw(logits, best)
                                 : static_cast<std::int32_t>(std::find(logits, logits + vocabulary_ - 1, best) - logits);
  see(token);
  return token;
}

const float* Sampler::penalised(const float* logits) {
  if (is_seen_.empty()) return logits;
  std::copy_n(logits, changed_.size(), changed_.data());
  const float penalty = settings_.repetition_penalty;
  for (std::int32_t token : seen_) {
    float& logit = changed_[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  return changed_.data();
}

void Sampler::see(std::int32_t token) {
  const std::size_t index = static_cast<std::size_t>(token);
  if (is_seen_.empty() || is_seen_[index]) return;
  is_seen_[index] = true;
  seen_.push_back(token);
}

std::int32_t Sampler::draw(const float* logits, float best) {
  ids_.resize(vocabulary_);
  std::iota(ids_.begin(), ids_.end(), 0);
  for (std::size_t i = 0; i < vocabulary_; ++i) scores_[i] = logits[i] - best;
  if (settings_.top_k > 0 && settings_.top_k < ids_.size()) keep_highest(static_cast<std::size_t>(settings_.top_k));
  if (settings_.top_p < 1) keep_nucleus();
  if (settings_.log_min_p > -INFINITY) keep_above(settings_.log_min_p);

  weigh(settings_.temperature);
  double total = 0;
  for (std::size_t i = 0; i < ids_.size(); ++i) total += static_cast<double>(weights_[i]);
  const double share = uniform(settings_.seed, settings_.draws++) * total;
  double sum = 0;
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    sum += static_cast<double>(weights_[i]);
    if (sum > share) return ids_[i];
  }
  return ids_.back();
}

// Of equal scores those of the lowest ids.
void Sampler::keep_highest(std::size_t count) {
  // A heap of the best so far with the worst on top: most tokens fail against it at once.
  auto better = [this](std::size_t a, std::size_t b) {
    return scores_[a] != scores_[b] ? scores_[a] > scores_[b] : a < b;
  };
  places_.resize(count);
  std::iota(places_.begin(), places_.end(), std::size_t{0});
  std::make_heap(places_.begin(), places_.end(), better);
  for (std::size_t place = count; place < ids_.size(); ++place) {
    if (!(scores_[place] > scores_[places_.front()])) continue;
    std::pop_heap(places_.begin(), places_.end(), better);
    places_.back() = place;
    std::push_heap(places_.begin(), places_.end(), better);
  }
  narrow();
}

// The fewest most probable tokens that reach top_p.
void Sampler::keep_nucleus() {
  weigh(1.0f);
  double total = 0;
  for (std::size_t i = 0; i < ids_.size(); ++i) total += static_cast<double>(weights_[i]);
  // Weights under this sum to less than (1 - top_p) * total, so the nucleus lies above.
  const float least = static_cast<float>((1 - settings_.top_p) * total / static_cast<double>(ids_.size()));
  places_.clear();
  for (std::size_t i = 0; i < ids_.size(); ++i)
    if (weights_[i] >= least) places_.push_back(i);
  auto worse = [this](std::size_t a, std::size_t b) {
    return weights_[a] != weights_[b] ? weights_[a] < weights_[b] : a > b;
  };
  std::make_heap(places_.begin(), places_.end(), worse);
  auto end = places_.end();
  double sum = 0;
  do {  // the next best goes behind the heap
    std::pop_heap(places_.begin(), end--, worse);
    sum += static_cast<double>(weights_[*end]);
  } while (end != places_.begin() && sum < settings_.top_p * total);
  places_.erase(places_.begin(), end);
  narrow();
}

void Sampler::keep_above(float least) {
  places_.clear();
  for (std::size_t i = 0; i < ids_.size(); ++i)
    if (scores_[i] >= least) places_.push_back(i);
  narrow();
}

// Only the places chosen stay in the draw.
void Sampler::narrow() {
  std::sort(places_.begin(), places_.end());
  for (std::size_t i = 0; i < places_.size(); ++i) {  // places never lie before where they go
    ids_[i] = ids_[places_[i]];
    scores_[i] = scores_[places_[i]];
  }
  ids_.resize(places_.size());
}

void Sampler::weigh(float divisor) {
  const int lanes = round_up(static_cast<int>(ids_.size()), 16);
  for (std::size_t i = ids_.size(); i < static_cast<std::size_t>(lanes); ++i) scores_[i] = kLowest;
  path_.exponentials(scores_.data(), lanes, 0.0f, divisor, weights_.data());
}

}  // namespace edgemem
