#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace edgemem {
namespace {

constexpr int kPieceSlots = 512;  // attended to by one member

// What a member will read first after the next barrier is fetched before it: memory is not idle while members meet.
constexpr std::size_t kEarlyBytes = 4096;

void fetch_early(const void* begin, std::size_t bytes) {
  const char* p = static_cast<const char*>(begin);
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 3);
}

}  // namespace

// ---- what it is made of ---------------------------------------------------------------------------------------------

Decoder::Form::Form(int rows, int columns_, int group_, int centre_)
    : columns(columns_),
      group(group_),
      centre(centre_),
      codes(size(rows, columns_)),
      scales(size(rows, columns_ / group_)),
      sums(size(rows, columns_ / group_)),
      offsets(size(rows, columns_ / group_)) {}

QuantizedRows Decoder::Form::from(int row, int column) {
  const std::size_t at = size(row, columns / group) + static_cast<std::size_t>(column / group);
  return {codes.data() + size(row, columns) + column, scales.data() + at, sums.data() + at, offsets.data() + at};
}

Decoder::Decoder(const Shape& shape, std::vector<Layer<Table>> layers, std::vector<Rope> ropes, const Table& embedding,
                 const Table& head, Floats norm, int capacity, bool kv_as_bytes, const Path& path, OwnedTeam team)
    : shape_(shape),
      ropes_(std::move(ropes)),
      path_(path),
      team_(std::move(team)),
      weights_(pack_weights(std::move(layers), shape, embedding, head, std::move(norm), *team_)),
      most_capacity_(capacity),
      kv_as_bytes_(kv_as_bytes),
      value_stride_(round_up(shape.head_dim, 16)),
      logit_stride_(round_up(shape.vocabulary, 16)),
      head_blocks_((shape.vocabulary + kHeadRows - 1) / kHeadRows),
      gate_unit_([this] {
        int unit = 1;  // a group is quantised by the member that computed it
        for (const Layer<Packed>& layer : weights_.layers) unit = std::max(unit, layer.down.group / kTileRows);
        return unit;
      }()),
      shared_(make_stream(kChunk)),
      projected_queries_(size(kChunk, round_up(shape.query_rows(), 16))),
      projected_keys_(size(kChunk, round_up(shape.key_rows(), 16))),
      projected_values_(size(kChunk, round_up(shape.key_rows(), 16))),
      delta_(size(kChunk, shape.hidden)),
      up_(size(kChunk, shape.intermediate)),
      seats_(std::max(shape.heads, path.queries)),
      most_pieces_(capacity / kPieceSlots + 1),
      queries_(std::max({size(team_->most_members(), seats_), size(most_pieces_, shape.heads),
                         size(team_->most_members(), most_pieces_) * static_cast<std::size_t>(shape.group())})),
      outputs_(queries_.size() * static_cast<std::size_t>(value_stride_)) {
  for (int member = 0; member < team_->most_members(); ++member) own_.push_back(make_stream(1));
  for (const Rope& rope : ropes_) angles_.emplace_back(size(kChunk, 2 * rope.pairs()));
  gate_.values = Floats(size(kChunk, shape.intermediate));
  for (const Layer<Packed>& layer : weights_.layers) add_form(gate_, kChunk, layer.down);
  exchange(*make_conversation(capacity));
  if (!shape.has_head) return;
  next_logits_ = make_logits();
  logit_rows_ = Floats(size(team_->most_members(), kChunk) * kHeadRows);
  log_sums_ = Floats(size(kChunk, head_blocks_));
  chosen_logits_ = Floats(kChunk);
}

Decoder::Stream Decoder::make_stream(int rows) const {
  Stream stream;
  stream.residual = Floats(size(rows, shape_.hidden));
  stream.queries = Floats(size(rows, shape_.query_rows()));
  stream.normed.values = Floats(size(rows, shape_.hidden));
  stream.attended.values = Floats(size(rows, shape_.query_rows()));
  for (const Layer<Packed>& layer : weights_.layers) {
    for (const Packed* w : {&layer.query, &layer.key, &layer.value, &layer.gate, &layer.up})
      add_form(stream.normed, rows, *w);
    add_form(stream.attended, rows, layer.output);
  }
  if (shape_.has_head) add_form(stream.normed, rows, weights_.head);
  return stream;
}

void Decoder::add_form(Input8& input, int rows, const Packed& w) const {
  if (!is_quantized(w.kind)) return;
  for (const Form& form : input.forms)
    if (form.group == w.group && form.centre == centre_of(w.kind)) return;
  input.forms.emplace_back(rows, w.columns, w.group, centre_of(w.kind));
}

// ---- consuming tokens -----------------------------------------------------------------------------------------------

bool Decoder::extend(const Input& input, float* states, float* surprisal, const std::function<void()>& pause) {
  const int before = length_;
  bool is_finite = true;
  try {
    for (int start = 0; start < input.n; start += kChunk) {
      if (start > 0) pause();
      const int n = std::min(kChunk, input.n - start);
      const std::size_t row = size(start, shape_.hidden);
      const Input chunk = {input.tokens ? input.tokens + start : nullptr, input.states ? input.states + row : nullptr, n};
      float* scores = surprisal ? surprisal + start : nullptr;
      if (scores && start == 0) scores[0] = surprisal_of(chunk.tokens[0]);
      if (scores && start > 0)
        scores[0] = path_.log_sum_exp(next_logits_.data(), logit_stride_) - next_logits_[static_cast<std::size_t>(chunk.tokens[0])];
      run_chunk(chunk, scores, shape_.has_head && start + n == input.n);
      length_ += n;
      if (!shape_.has_head) {
        const float* result = (n == 1 ? own_[0] : shared_).residual.data();
        is_finite = is_finite && path_.finite(result, n * shape_.hidden);
        std::copy_n(result, size(n, shape_.hidden), states + row);
      }
    }
  } catch (...) {
    length_ = before;
    throw;
  }
  if (shape_.has_head) is_finite = path_.finite(next_logits_.data(), shape_.vocabulary);
  if (!is_finite) {
    length_ = before;
    return false;
  }
  std::swap(logits_, next_logits_);
  has_logits_ = shape_.has_head;
  return true;
}

void Decoder::run_chunk(const Input& input, float* surprisal, bool wants_logits) {
  prepare_angles(input.n);
  team_->run([&](int member) {
    embed(input, stream_of(input.n, member), rows_of(input.n, member));
    for (int index = 0; index < static_cast<int>(weights_.layers.size()); ++index) run_layer(index, input.n, member);
    if (surprisal && input.n > 1)
      finish_all(input, surprisal, member);
    else if (wants_logits)
      finish_last(input.n, member);
  });
}

void Decoder::prepare_angles(int n) {
  for (std::size_t rope = 0; rope < ropes_.size(); ++rope) {
    const int pairs = ropes_[rope].pairs();
    for (int t = 0; t < n; ++t)
      for (int i = 0; i < pairs; ++i) {
        const double frequency = static_cast<double>(ropes_[rope].inverse_frequencies[static_cast<std::size_t>(i)]);
        const double angle = static_cast<double>(place_of(t).slot) * frequency;
        float* place = angles_[rope].data() + size(t, 2 * pairs) + i;
        place[0] = static_cast<float>(std::cos(angle)) * ropes_[rope].amplitude;
        place[pairs] = static_cast<float>(std::sin(angle)) * ropes_[rope].amplitude;
      }
  }
}

void Decoder::embed(const Input& input, Stream& stream, Range rows) {
  for (int t = rows.begin; t < rows.end; ++t) {
    float* out = stream.residual.data() + size(t, shape_.hidden);
    if (input.states) {
      std::copy_n(input.states + size(t, shape_.hidden), shape_.hidden, out);
      continue;
    }
    weights_.embedding.read(input.tokens[t], out);
    if (shape_.embedding_scale != 1.0f)
      for (int k = 0; k < shape_.hidden; ++k) out[k] *= shape_.embedding_scale;
  }
}

// Every barrier here keeps a member from reading what another has yet to write, or from overwriting what another has
// yet to read. The rows of a member stay its own from one product to the next.
void Decoder::run_layer(int index, int n, int member) {
  const Layer<Packed>& layer = weights_.layers[static_cast<std::size_t>(index)];
  Stream& stream = stream_of(n, member);
  const Range rows = rows_of(n, member);
  normalise(stream, layer.attention_norm, rows);
  meet(n);
  if (n == 1) fetch_slots(index, member);
  project(layer, stream, n, member);
  team_->barrier();
  if (n == 1)
    attend_together(index, member);
  else if (together_ != nullptr)
    attend_each(index, n, member);
  else
    attend_apart(index, n, member);
  quantize(stream.attended, shape_.query_rows(), rows);
  meet(n);
  product(layer.output, stream.attended, n, delta_, member);
  fetch_weights(layer.gate, n, member, gate_unit_);
  team_->barrier();
  add(stream, layer.output_bias, layer.attention_post_norm, rows);
  normalise(stream, layer.mlp_norm, rows);
  meet(n);
  feed_forward(layer, stream, n, member);
  fetch_weights(layer.down, n, member);
  team_->barrier();
  product(layer.down, gate_, n, delta_, member);
  const bool is_last = index + 1 == static_cast<int>(weights_.layers.size());
  if (!is_last) fetch_weights(weights_.layers[static_cast<std::size_t>(index) + 1].query, n, member);
  if (is_last && shape_.has_head) fetch_weights(weights_.head, n, member);
  team_->barrier();
  add(stream, {}, layer.mlp_post_norm, rows);
}

// ---- the phases of a layer ------------------------------------------------------------------------------------------

void Decoder::normalise(Stream& stream, const Floats& norm, Range rows) const {
  for (int t = rows.begin; t < rows.end; ++t)
    path_.rms_norm(stream.residual.data() + size(t, shape_.hidden), norm.data(), shape_.hidden, shape_.norm_epsilon,
                   stream.normed.values.data() + size(t, shape_.hidden));
  quantize(stream.normed, shape_.hidden, rows);
}

void Decoder::project(const Layer<Packed>& layer, Stream& stream, int n, int member) {
  product(layer.query, stream.normed, n, projected_queries_, member);
  product(layer.key, stream.normed, n, projected_keys_, member);
  product(layer.value, stream.normed, n, projected_values_, member);
}

// Of the slots up to and with a token's own.
Decoder::Pieces Decoder::pieces_of(int index, int slot) const {
  const int window = weights_.layers[static_cast<std::size_t>(index)].window;
  const int first_slot = window > 0 ? std::max(0, slot + 1 - window) : 0, first = first_slot / kPieceSlots;
  return {first_slot, first, slot / kPieceSlots + 1 - first};
}

// One token: heads and pieces of the slots are shared out. Where a piece begins depends on slots alone, not on the number
// of members: so the sums round alike however many there are. Whoever has the last piece of a head also writes the
// token's own slot of it, which no other reads before the next barrier.
void Decoder::attend_together(int index, int member) {
  const Pieces pieces = pieces_of(index, length_);
  Stream& stream = own_[static_cast<std::size_t>(member)];
  for (int head = 0; head < shape_.heads; ++head) position_query(index, 0, head, stream);
  const Range items = team_->share(pieces.count * shape_.kv_heads, member);
  for (int item = items.begin; item < items.end; ++item) {
    const int piece = item % pieces.count, kv = item / pieces.count;
    if (piece == pieces.count - 1) position_key(index, 0, kv);
    Query* queries = queries_.data() + size(piece, shape_.heads) + kv * shape_.group();
    attend_piece(index, 0, kv, pieces, piece, stream, queries);
  }
  fetch_weights(weights_.layers[static_cast<std::size_t>(index)].output, 1, member);
  team_->barrier();
  float* out = stream.attended.values.data();
  for (int head = 0; head < shape_.heads; ++head)
    merge(queries_.data() + head, shape_.heads, pieces.count, out + size(head, shape_.head_dim));
}

// The query heads of one token over one KV head; `queries` are of queries_.
void Decoder::attend_piece(int index, int t, int kv, const Pieces& pieces, int piece, const Stream& stream,
                           Query* queries) {
  const auto [cache, slot] = place_of(t);
  const int start = (pieces.first + piece) * kPieceSlots, group = shape_.group();
  const float* vectors = stream.queries.data() + size(t, shape_.query_rows()) + size(kv * group, shape_.head_dim);
  float* outputs = outputs_.data() + (queries - queries_.data()) * value_stride_;
  for (int q = 0; q < group; ++q)
    queries[q] = {vectors + size(q, shape_.head_dim),
                  std::max(pieces.first_slot, start),
                  std::min(slot + 1, start + kPieceSlots),
                  outputs + size(q, value_stride_),
                  kLowest,
                  0.0f};
  path_.attend(cache.head(index, kv), queries, group, shape_.attention_softcap);
}

// Of the pieces that attend_together will give this member: where they begin, and what it will write.
void Decoder::fetch_slots(int index, int member) {
  const Pieces pieces = pieces_of(index, length_);
  const Range items = team_->share(pieces.count * shape_.kv_heads, member);
  for (int item = items.begin; item < items.end; ++item) {
    const int piece = item % pieces.count, kv = item / pieces.count;
    if (item == items.begin || piece == 0)
      cache_->fetch(index, kv, std::max(pieces.first_slot, (pieces.first + piece) * kPieceSlots), kEarlyBytes);
    if (piece == pieces.count - 1) cache_->fetch(index, kv, length_, kEarlyBytes / 2);
  }
}

void Decoder::fetch_weights(const Packed& w, int n, int member, int unit) const {
  if (n == 1) fetch_early(w.data + static_cast<std::size_t>(team_->share(w.tiles(), member, unit).begin) * w.tile_bytes(), kEarlyBytes);
}

// Softmax over all pieces of the slots, for one head; its queries lie `stride` apart.
void Decoder::merge(const Query* queries, int stride, int pieces, float* out) const {
  float top = kLowest, total = 0;
  for (int piece = 0; piece < pieces; ++piece) top = std::max(top, queries[size(piece, stride)].top);
  std::fill_n(out, shape_.head_dim, 0.0f);
  for (int piece = 0; piece < pieces; ++piece) {
    const Query& query = queries[size(piece, stride)];
    const float weight = std::exp(query.top - top);
    total += weight * query.total;
    for (int d = 0; d < shape_.head_dim; ++d) out[d] += weight * query.output[d];
  }
  for (int d = 0; d < shape_.head_dim; ++d) out[d] /= total;
}

// Several tokens: the members share tokens and heads out. A few tokens go together, over the same keys and values.
void Decoder::attend_apart(int index, int n, int member) {
  const int window = weights_.layers[static_cast<std::size_t>(index)].window, group = shape_.group();
  const int both = shape_.heads + shape_.kv_heads;
  const Range items = team_->share(n * both, member);
  for (int item = items.begin; item < items.end; ++item) {
    const int head = item % both;
    if (head < shape_.heads)
      position_query(index, item / both, head, shared_);
    else
      position_key(index, item / both, head - shape_.heads);
  }
  team_->barrier();
  const int together = std::max(1, path_.queries / group), tiles = (n + together - 1) / together;
  Query* queries = queries_.data() + size(member, seats_);
  float* outputs = outputs_.data() + size(member, seats_) * static_cast<std::size_t>(value_stride_);
  // Later tokens have more slots before them: dealt out in turn, the members' loads are about the same.
  for (int item = member; item < tiles * shape_.kv_heads; item += team_->members()) {
    const int kv = item % shape_.kv_heads, first = item / shape_.kv_heads * together, last = std::min(n, first + together);
    int count = 0;
    for (int t = first; t < last; ++t)
      for (int q = 0; q < group; ++q, ++count) {
        const int end = length_ + t + 1;
        const float* vector = shared_.queries.data() + size(t, shape_.query_rows()) + size(kv * group + q, shape_.head_dim);
        queries[count] = {vector,  window > 0 ? std::max(0, end - window) : 0, end, outputs + size(count, value_stride_),
                          kLowest, 0.0f};
      }
    path_.attend(cache_->head(index, kv), queries, count, shape_.attention_softcap);
    for (int i = 0; i < count; ++i) {
      float* out = shared_.attended.values.data() + size(first + i / group, shape_.query_rows()) +
                   size(kv * group + i % group, shape_.head_dim);
      for (int d = 0; d < shape_.head_dim; ++d) out[d] = queries[i].output[d] / queries[i].total;
    }
  }
  team_->barrier();
}

void Decoder::position_query(int index, int t, int head, Stream& stream) {
  const Layer<Packed>& layer = weights_.layers[static_cast<std::size_t>(index)];
  const std::size_t stride = static_cast<std::size_t>(round_up(shape_.query_rows(), 16));
  const float* projected = projected_queries_.data() + static_cast<std::size_t>(t) * stride + size(head, shape_.head_dim);
  float* out = stream.queries.data() + size(t, shape_.query_rows()) + size(head, shape_.head_dim);
  std::copy_n(projected, shape_.head_dim, out);
  turn(index, t, out, layer.query_bias, layer.query_norm, head);
  for (int d = 0; d < shape_.head_dim; ++d) out[d] *= shape_.attention_scale;
}

// Key and value of the token's own slot.
void Decoder::position_key(int index, int t, int head) {
  const Layer<Packed>& layer = weights_.layers[static_cast<std::size_t>(index)];
  const std::size_t place = size(t, round_up(shape_.key_rows(), 16)) + size(head, shape_.head_dim);
  const auto [cache, slot] = place_of(t);
  float* key = projected_keys_.data() + place;
  turn(index, t, key, layer.key_bias, layer.key_norm, head);
  cache.write_key(path_, index, head, slot, key);
  float* value = projected_values_.data() + place;
  if (!layer.value_bias.empty())
    for (int d = 0; d < shape_.head_dim; ++d) value[d] += layer.value_bias[size(head, shape_.head_dim) + static_cast<std::size_t>(d)];
  cache.write_value(path_, index, head, slot, value);
}

// One head of one token: bias, norm, rotation.
void Decoder::turn(int index, int t, float* x, const Floats& bias, const Floats& norm, int head) const {
  const std::size_t rope = static_cast<std::size_t>(weights_.layers[static_cast<std::size_t>(index)].rope);
  if (!bias.empty())
    for (int d = 0; d < shape_.head_dim; ++d) x[d] += bias[size(head, shape_.head_dim) + static_cast<std::size_t>(d)];
  if (!norm.empty()) path_.rms_norm(x, norm.data(), shape_.head_dim, shape_.norm_epsilon, x);
  const int pairs = ropes_[rope].pairs();
  const float* cosines = angles_[rope].data() + size(t, 2 * pairs);
  path_.rotate(x, cosines, cosines + pairs, pairs);
}

// residual += post_norm(delta + bias)
void Decoder::add(Stream& stream, const Floats& bias, const Floats& post_norm, Range rows) {
  Floats& changed = stream.normed.values;  // free between two norms; delta_ itself others may be reading
  for (int t = rows.begin; t < rows.end; ++t) {
    const float* delta = delta_.data() + size(t, shape_.hidden);
    float* residual = stream.residual.data() + size(t, shape_.hidden);
    float* own = changed.data() + size(t, shape_.hidden);
    std::copy_n(delta, shape_.hidden, own);
    if (!bias.empty())
      for (int k = 0; k < shape_.hidden; ++k) own[k] += bias[static_cast<std::size_t>(k)];
    if (!post_norm.empty()) path_.rms_norm(own, post_norm.data(), shape_.hidden, shape_.norm_epsilon, own);
    for (int k = 0; k < shape_.hidden; ++k) residual[k] += own[k];
  }
}

// Gate and up of the same rows by the same member, which can then multiply and quantise them without a barrier.
void Decoder::feed_forward(const Layer<Packed>& layer, Stream& stream, int n, int member) {
  const std::size_t stride = static_cast<std::size_t>(shape_.intermediate);
  const Range tiles = team_->share(layer.gate.tiles(), member, gate_unit_);
  path_.matmul(layer.gate, activation(stream.normed, layer.gate), n, gate_.values.data(), stride, tiles.begin, tiles.end);
  path_.matmul(layer.up, activation(stream.normed, layer.up), n, up_.data(), stride, tiles.begin, tiles.end);
  const int first = tiles.begin * kTileRows, count = (tiles.end - tiles.begin) * kTileRows;
  for (int t = 0; t < n && count > 0; ++t) {
    float* gate = gate_.values.data() + static_cast<std::size_t>(t) * stride + first;
    path_.gated(gate, up_.data() + static_cast<std::size_t>(t) * stride + first, count, shape_.gelu);
    for (Form& form : gate_.forms) path_.quantize(gate, count, form.group, form.centre, form.from(t, first));
  }
}

void Decoder::product(const Packed& w, Input8& input, int n, Floats& out, int member) {
  const Range tiles = team_->share(w.tiles(), member);
  const std::size_t stride = size(w.tiles(), kTileRows);
  path_.matmul(w, activation(input, w), n, out.data(), stride, tiles.begin, tiles.end);
}

void Decoder::quantize(Input8& input, int columns, Range rows) const {
  for (Form& form : input.forms)
    for (int t = rows.begin; t < rows.end; ++t)
      path_.quantize(input.values.data() + size(t, columns), columns, form.group, form.centre, form.from(t, 0));
}

Activation Decoder::activation(Input8& input, const Packed& w) const {
  for (Form& form : input.forms)
    if (form.group == w.group && form.centre == centre_of(w.kind)) return {input.values.data(), form.from(0, 0)};
  return {input.values.data(), {}};
}

// ---- logits ---------------------------------------------------------------------------------------------------------

// The last row alone goes through the head; every member prepares it for itself.
void Decoder::finish_last(int n, int member) {
  Stream& own = own_[static_cast<std::size_t>(member)];
  if (n > 1) {
    team_->barrier();
    std::copy_n(shared_.residual.data() + size(n - 1, shape_.hidden), shape_.hidden, own.residual.data());
  }
  normalise(own, weights_.norm, {0, 1});
  product(weights_.head, own.normed, 1, next_logits_, member);
  team_->barrier();
  if (member == 0) cap_logits(next_logits_.data());
}

// Every token goes through the head, which is read once, but only the last one's logits are ever together: of the others
// a block of the vocabulary leaves the log of its sum of exponentials, and the logit of the token that came next. The
// blocks lie alike for any number of members, so that the sums round alike.
void Decoder::finish_all(const Input& input, float* surprisal, int member) {
  normalise(shared_, weights_.norm, team_->share(input.n, member));
  team_->barrier();
  const Range tiles = team_->share(weights_.head.tiles(), member, kHeadTiles);
  for (int begin = tiles.begin; begin < tiles.end; begin += kHeadTiles)
    score(input, begin, std::min(begin + kHeadTiles, tiles.end), member);
  team_->barrier();
  const Range rows = team_->share(input.n - 1, member);
  for (int t = rows.begin; t < rows.end; ++t) {
    const float* blocks = log_sums_.data() + size(t, head_blocks_);
    const double top = static_cast<double>(*std::max_element(blocks, blocks + head_blocks_));
    double total = 0;
    for (int block = 0; block < head_blocks_; ++block) total += std::exp(static_cast<double>(blocks[block]) - top);
    surprisal[t + 1] = static_cast<float>(top + std::log(total) - static_cast<double>(chosen_logits_[static_cast<std::size_t>(t)]));
  }
}

// Tiles [begin, end) of the head, a block, for all tokens.
void Decoder::score(const Input& input, int begin, int end, int member) {
  const int first = begin * kTileRows, whole = (end - begin) * kTileRows, rows = std::min(whole, shape_.vocabulary - first);
  float* logits = head_block(begin, end, input.n, member);
  for (int t = 0; t < input.n; ++t) {
    float* row = logits + size(t, kHeadRows);
    std::fill(row + rows, row + whole, kLowest);
    if (t + 1 == input.n) {
      std::copy_n(row, whole, next_logits_.data() + first);
      continue;
    }
    log_sums_[size(t, head_blocks_) + static_cast<std::size_t>(begin / kHeadTiles)] = path_.log_sum_exp(row, whole);
    const int next = input.tokens[t + 1] - first;
    if (next >= 0 && next < rows) chosen_logits_[static_cast<std::size_t>(t)] = row[next];
  }
}

// Logits of tiles [begin, end), at most kHeadTiles, for all tokens; those of a token kHeadRows after the last one's.
float* Decoder::head_block(int begin, int end, int n, int member) {
  const int whole = (end - begin) * kTileRows;
  Packed part = weights_.head;
  part.data += static_cast<std::size_t>(begin) * part.tile_bytes();
  part.rows = std::min(whole, shape_.vocabulary - begin * kTileRows);
  float* logits = logit_rows_.data() + size(member, kChunk) * kHeadRows;
  path_.matmul(part, activation(shared_.normed, part), n, logits, kHeadRows, 0, end - begin);
  if (shape_.logit_softcap > 0)
    for (int t = 0; t < n; ++t) path_.softcap(logits + size(t, kHeadRows), whole, shape_.logit_softcap);
  return logits;
}

void Decoder::cap_logits(float* row) const {
  if (shape_.logit_softcap > 0) path_.softcap(row, logit_stride_, shape_.logit_softcap);
  std::fill(row + shape_.vocabulary, row + logit_stride_, kLowest);
}

float Decoder::surprisal_of(std::int32_t token) const {
  if (!has_logits_) return std::numeric_limits<float>::quiet_NaN();
  return path_.log_sum_exp(logits_.data(), logit_stride_) - logits_[static_cast<std::size_t>(token)];
}

// ---- memory ---------------------------------------------------------------------------------------------------------

Floats Decoder::make_logits() const {
  Floats row(static_cast<std::size_t>(logit_stride_));
  std::fill(row.data() + shape_.vocabulary, row.data() + logit_stride_, kLowest);
  return row;
}

std::unique_ptr<Conversation> Decoder::make_conversation(int capacity) const {
  auto made = std::make_unique<Conversation>();
  made->cache = std::make_unique<KvCache>(static_cast<int>(weights_.layers.size()), shape_.kv_heads, shape_.head_dim,
                                          capacity, kv_as_bytes_);
  if (shape_.has_head) made->logits = make_logits();
  return made;
}

void Decoder::exchange(Conversation& other) {
  std::swap(cache_, other.cache);
  std::swap(logits_, other.logits);
  std::swap(length_, other.length);
  std::swap(has_logits_, other.has_logits);
}

void Decoder::truncate(int length) {
  if (length == length_) return;
  length_ = length;
  has_logits_ = false;
}

void Decoder::keep(const std::int64_t* slots, int count) {
  std::vector<const Rope*> ropes;
  for (const Layer<Packed>& layer : weights_.layers) ropes.push_back(&ropes_[static_cast<std::size_t>(layer.rope)]);
  cache_->keep(path_, slots, count, ropes, *team_);
  length_ = count;
}

void Decoder::write_state(const float* keys, const float* values, int length, const float* logits) {
  cache_->write(path_, keys, values, length);
  length_ = length;
  has_logits_ = logits != nullptr;
  if (logits) std::copy_n(logits, shape_.vocabulary, logits_.data());
}

}  // namespace edgemem
