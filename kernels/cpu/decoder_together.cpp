// Rows of several conversations in one run: what differs from several tokens of one.
#include <algorithm>

#include "decoder.h"

namespace edgemem {

std::vector<bool> Decoder::extend_together(const Input& input, const std::vector<Conversation*>& conversations,
                                           const std::vector<float*>& outs) {
  if (input.n == 1) return {extend_alone(input, *conversations[0], outs[0])};
  std::vector<char> is_finite(conversations.size());  // not bits: members write side by side
  together_ = &conversations;
  try {
    prepare_angles(input.n);
    team_->run([&](int member) {
      const Range rows = team_->share(input.n, member);
      embed(input, shared_, rows);
      for (int index = 0; index < static_cast<int>(weights_.layers.size()); ++index) run_layer(index, input.n, member);
      if (shape_.has_head) finish_each(input.n, outs, member);
      for (int t = rows.begin; t < rows.end; ++t) {
        const std::size_t row = static_cast<std::size_t>(t);
        is_finite[row] = settle(t, *conversations[row], outs[row]);
      }
    });
  } catch (...) {
    together_ = nullptr;
    throw;
  }
  together_ = nullptr;
  return {is_finite.begin(), is_finite.end()};
}

// One row is a step like any other, and quicker so.
bool Decoder::extend_alone(const Input& input, Conversation& conversation, float* out) {
  bool is_finite = false;
  exchange(conversation);
  try {
    is_finite = extend(input, shape_.has_head ? nullptr : out, nullptr, [] {});
  } catch (...) {
    exchange(conversation);
    throw;
  }
  if (is_finite && shape_.has_head) std::copy_n(logits_.data(), shape_.vocabulary, out);
  exchange(conversation);
  return is_finite;
}

// Each row over its own slots, in the pieces that it has alone, so that the sums round alike: the members deal rows and
// KV heads out.
void Decoder::attend_each(int index, int n, int member) {
  const int group = shape_.group();
  Query* queries = queries_.data() + size(member, most_pieces_) * static_cast<std::size_t>(group);
  for (int item = member; item < n * shape_.kv_heads; item += team_->members()) {
    const int t = item / shape_.kv_heads, kv = item % shape_.kv_heads;
    const Pieces pieces = pieces_of(index, place_of(t).slot);
    position_key(index, t, kv);
    for (int q = 0; q < group; ++q) position_query(index, t, kv * group + q, shared_);
    for (int piece = 0; piece < pieces.count; ++piece)
      attend_piece(index, t, kv, pieces, piece, shared_, queries + size(piece, group));
    float* out = shared_.attended.values.data() + size(t, shape_.query_rows()) + size(kv * group, shape_.head_dim);
    for (int q = 0; q < group; ++q) merge(queries + q, group, pieces.count, out + size(q, shape_.head_dim));
  }
  team_->barrier();
}

// The head's product for all rows; the members meet when it is whole.
void Decoder::finish_each(int n, const std::vector<float*>& outs, int member) {
  normalise(shared_, weights_.norm, team_->share(n, member));
  team_->barrier();
  const Range tiles = team_->share(weights_.head.tiles(), member, kHeadTiles);
  for (int begin = tiles.begin; begin < tiles.end; begin += kHeadTiles) {
    const int end = std::min(begin + kHeadTiles, tiles.end), first = begin * kTileRows;
    const int rows = std::min(end * kTileRows, shape_.vocabulary) - first;
    const float* logits = head_block(begin, end, n, member);
    for (std::size_t t = 0; t < outs.size(); ++t) std::copy_n(logits + t * kHeadRows, rows, outs[t] + first);
  }
  team_->barrier();
}

// The conversation goes on to the result of its row, unless that is not finite.
bool Decoder::settle(int t, Conversation& conversation, float* out) const {
  if (!shape_.has_head) std::copy_n(shared_.residual.data() + size(t, shape_.hidden), shape_.hidden, out);
  if (!path_.finite(out, shape_.has_head ? shape_.vocabulary : shape_.hidden)) return false;
  if (shape_.has_head) std::copy_n(out, shape_.vocabulary, conversation.logits.data());
  ++conversation.length;
  conversation.has_logits = shape_.has_head;
  return true;
}

}  // namespace edgemem
