// Attention of a few query heads over one KV head's slots: online softmax, block by block of 16 slots.
#pragma once
#include <cmath>

#include "kernels_vector.h"
#include "lanes.h"
#include "path.h"

namespace edgemem {
namespace {

struct HalfKv {
  using Item = std::uint16_t;
  static F load(const Item* p) { return Lanes::load_half(p); }
};
struct ByteKv {
  using Item = std::int8_t;
  static F load(const Item* p) { return Lanes::load_bytes(p); }
};

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }

// Sixteen lanes below any score, sixteen above, sixteen below.
constexpr float kInside = __builtin_huge_valf(), kOutside = kLowest;
alignas(64) constexpr float kLimits[48] = {
    kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside,
    kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kInside,  kInside,  kInside,  kInside,
    kInside,  kInside,  kInside,  kInside,  kInside,  kInside,  kInside,  kInside,  kInside,  kInside,
    kInside,  kInside,  kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside,
    kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside, kOutside};

// Lanes outside [from, to) lowered to kLowest, also where they are NaN.
inline F masked(F scores, int from, int to) {
  if (from > 0) scores = Lanes::min(scores, Lanes::load(kLimits + 16 - from));
  if (to < 16) scores = Lanes::min(scores, Lanes::load(kLimits + 32 - to));
  return scores;
}

// The scores of one block become weights; the query's running top and output follow, and lane by lane its total.
inline void weigh(Query& query, F scores, int lanes, float* weights, F& totals) {
  if (Lanes::any_above(scores, query.top)) {
    const float top = Lanes::max_of(scores), shrink = std::exp(query.top - top);
    totals = Lanes::mul(totals, Lanes::all(shrink));
    for (int l = 0; l < lanes; ++l) {
      float* output = query.output + l * 16;
      Lanes::store(output, Lanes::mul(Lanes::load(output), Lanes::all(shrink)));
    }
    query.top = top;
  }
  const F raised = exponential(Lanes::add(scores, Lanes::all(-query.top)));
  totals = Lanes::add(totals, raised);
  Lanes::store(weights, raised);
}

// Several sums for each query where there are few, or the processor would wait for one addition after another.
template <typename Kv, int Q>
void block_scores(const KvHead& kv, int block, const float* vectors, F* scores) {
  constexpr int kWays = Q >= 4 ? 1 : Q >= 2 ? 2 : 4;
  using Item = typename Kv::Item;
  const Item* keys = static_cast<const Item*>(kv.keys) + size(block, kv.head_dim) * 16;
  F sums[kWays][Q];
  for (auto& way : sums)
    for (F& sum : way) sum = Lanes::zero();
  int d = 0;
  for (; d + kWays <= kv.head_dim; d += kWays)
    for (int way = 0; way < kWays; ++way) {
      const F key = Kv::load(keys + (d + way) * 16);
      for (int q = 0; q < Q; ++q)
        sums[way][q] = Lanes::fma(key, Lanes::all(vectors[(d + way) * Q + q]), sums[way][q]);
    }
  for (; d < kv.head_dim; ++d)
    for (int q = 0; q < Q; ++q)
      sums[0][q] = Lanes::fma(Kv::load(keys + d * 16), Lanes::all(vectors[d * Q + q]), sums[0][q]);
  for (int q = 0; q < Q; ++q) {
    scores[q] = sums[0][q];
    for (int way = 1; way < kWays; ++way) scores[q] = Lanes::add(scores[q], sums[way][q]);
    if (kv.key_scales) scores[q] = Lanes::mul(scores[q], Lanes::load(kv.key_scales + block * 16));
  }
}

// output += weights * values over slots [from, to) of the block, for `kWide` registers' dimensions at a time.
template <typename Kv, int Q, int kWide>
void add_columns(const KvHead& kv, const typename Kv::Item* values, int from, int to, int first,
                 const float (*weights)[16], Query* queries) {
  F sums[kWide][Q];
  for (int wide = 0; wide < kWide; ++wide)
    for (int q = 0; q < Q; ++q) sums[wide][q] = Lanes::load(queries[q].output + first + wide * 16);
  for (int slot = from; slot < to; ++slot) {
    const typename Kv::Item* row = values + size(slot, kv.value_stride) + first;
    for (int wide = 0; wide < kWide; ++wide) {
      const F value = Kv::load(row + wide * 16);
      for (int q = 0; q < Q; ++q) sums[wide][q] = Lanes::fma(value, Lanes::all(weights[q][slot]), sums[wide][q]);
    }
  }
  for (int wide = 0; wide < kWide; ++wide)
    for (int q = 0; q < Q; ++q) Lanes::store(queries[q].output + first + wide * 16, sums[wide][q]);
}

template <typename Kv, int Q>
void add_values(const KvHead& kv, int block, int from, int to, const float (*weights)[16], Query* queries) {
  constexpr int kWide = Q <= 4 ? 2 : 1;  // few queries: or the processor would wait for one addition after another
  const typename Kv::Item* values = static_cast<const typename Kv::Item*>(kv.values) + size(block * 16, kv.value_stride);
  int first = 0;
  for (; first + kWide * 16 <= kv.value_stride; first += kWide * 16)
    add_columns<Kv, Q, kWide>(kv, values, from, to, first, weights, queries);
  for (; first < kv.value_stride; first += 16)
    add_columns<Kv, Q, 1>(kv, values, from, to, first, weights, queries);
}

template <typename Kv, int Q>
void attend_some(const KvHead& kv, Query* queries, float cap) {
  alignas(64) float vectors[kMostHeadDim * Q];  // dimension by dimension, so that one pointer serves all queries
  alignas(64) float weights[Q][16];
  F totals[Q];
  int begin = queries[0].begin, end = queries[0].end;
  for (int q = 0; q < Q; ++q) {
    for (int d = 0; d < kv.head_dim; ++d) vectors[d * Q + q] = queries[q].vector[d];
    queries[q].top = kLowest;
    totals[q] = Lanes::zero();
    for (int l = 0; l < kv.value_stride; l += 16) Lanes::store(queries[q].output + l, Lanes::zero());
    begin = least(begin, queries[q].begin);
    end = most(end, queries[q].end);
  }
  for (int block = begin / 16; block * 16 < end; ++block) {
    const int start = block * 16;
    F scores[Q] = {};
    block_scores<Kv, Q>(kv, block, vectors, scores);
    for (int q = 0; q < Q; ++q) {
      const int from = most(queries[q].begin - start, 0), to = least(queries[q].end - start, 16);
      if (from >= to) {  // another query's block
        Lanes::store(weights[q], Lanes::zero());
        continue;
      }
      const F score = cap > 0 ? softcapped(scores[q], cap) : scores[q];
      weigh(queries[q], masked(score, from, to), kv.value_stride / 16, weights[q], totals[q]);
      if (kv.value_scales) {
        const F scale = Lanes::load(kv.value_scales + start);
        Lanes::store(weights[q], Lanes::mul(Lanes::load(weights[q]), scale));
      }
    }
    add_values<Kv, Q>(kv, block, most(begin - start, 0), least(end - start, 16), weights, queries);
  }
  for (int q = 0; q < Q; ++q) queries[q].total = Lanes::sum(totals[q]);
}

template <int Q>
void attend_tiles(const KvHead& kv, Query* queries, int count, float cap) {
  for (; count >= Q; count -= Q, queries += Q) {
    if (kv.key_scales)
      attend_some<ByteKv, Q>(kv, queries, cap);
    else
      attend_some<HalfKv, Q>(kv, queries, cap);
  }
  if constexpr (Q > 1) {
    if (count > 0) attend_tiles<(Q > 4 ? Q - 4 : Q - 1)>(kv, queries, count, cap);
  }
}

void attend(const KvHead& kv, Query* queries, int count, float cap) {
  attend_tiles<Lanes::kQueries>(kv, queries, count, cap);
}

}  // namespace
}  // namespace edgemem
