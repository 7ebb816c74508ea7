#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kv_cache.h"
#include "model.h"
#include "path.h"
#include "sampler.h"
#include "team.h"
#include "weights.h"

namespace edgemem {

// What one conversation has of its own, beside the weights that many share.
struct Conversation {
  std::unique_ptr<KvCache> cache;
  Floats logits;
  int length = 0;
  bool has_logits = false;
};

// A range of layers over packed weights and one KV cache. Sizes, tokens and slots are the caller's to check: see
// binding_decoder.cpp. One call at a time.
class Decoder {
 public:
  Decoder(const Shape& shape, std::vector<Layer<Table>> layers, std::vector<Rope> ropes, const Table& embedding,
          const Table& head, Floats norm, int capacity, bool kv_as_bytes, const Path& path, OwnedTeam team);

  int length() const { return length_; }
  int capacity() const { return cache_->capacity(); }
  int most_capacity() const { return most_capacity_; }  // of any conversation
  const Shape& shape() const { return shape_; }
  const Path& path() const { return path_; }
  bool has_logits() const { return has_logits_; }
  const float* logits() const { return logits_.data(); }  // (vocabulary), padded by kLowest to whole lanes

  struct Input {
    const std::int32_t* tokens;  // (n), or null; beside states only for their surprisal
    const float* states;         // (n, hidden), or null
    int n;
  };
  // Consumes the input in chunks. states: (n, hidden) to fill, without the head. surprisal: (n) to fill, or null; NaN
  // where there are no logits before. `pause` is called between chunks and may throw. Gives false, and leaves length
  // and logits as they were, if the result is not finite; so it does when `pause` throws.
  bool extend(const Input& input, float* states, float* surprisal, const std::function<void()>& pause);

  // Row t of at most kChunk goes into conversations[t], all different, and what comes out into outs[t]: (vocabulary)
  // logits, or (hidden). All rows go through each matrix together, and yet every bit is that of an `extend` of the row
  // alone. Gives for each whether it is finite; one that is not leaves its conversation as it was.
  std::vector<bool> extend_together(const Input& input, const std::vector<Conversation*>& conversations,
                                    const std::vector<float*>& outs);

  float surprisal_of(std::int32_t token) const;  // by the logits

  void truncate(int length);
  void keep(const std::int64_t* slots, int count);  // the logits stay
  // Floats of keys, or values, of `length` slots.
  std::size_t state_items(int length) const {
    return weights_.layers.size() * size(shape_.key_rows(), length);
  }
  void read_state(float* keys, float* values) const { cache_->read(keys, values, length_); }
  void write_state(const float* keys, const float* values, int length, const float* logits);

  // An empty one, of at most most_capacity() slots.
  std::unique_ptr<Conversation> make_conversation(int capacity) const;
  void exchange(Conversation& other);  // go on with its slots and logits; it gets those of now

  static constexpr int kChunk = 128;  // tokens at a time

 private:
  static constexpr int kHeadTiles = 32;  // of the head at a time, for several tokens: the logits then stay in the cache
  static constexpr int kHeadRows = kHeadTiles * kTileRows;

  // One matrix input as int8 in one group size and centre.
  struct Form {
    Form(int rows, int columns, int group, int centre);
    QuantizedRows from(int row, int column);

    int columns, group, centre;
    Buffer<std::int8_t> codes;
    Floats scales, sums, offsets;
  };
  struct Input8 {  // a matrix input with all its forms
    Floats values;
    std::vector<Form> forms;
  };
  // What passes from phase to phase for some rows of tokens. Of one token each member has its own copy and computes
  // all that is small by itself: a barrier costs more.
  struct Stream {
    Floats residual, queries;
    Input8 normed, attended;
  };

  Stream make_stream(int rows) const;
  Floats make_logits() const;
  void add_form(Input8& input, int rows, const Packed& w) const;
  Activation activation(Input8& input, const Packed& w) const;
  void quantize(Input8& input, int columns, Range rows) const;

  bool extend_alone(const Input& input, Conversation& conversation, float* out);
  void run_chunk(const Input& input, float* surprisal, bool wants_logits);
  // The slot of its own that token t of the run under way gets.
  struct Place {
    KvCache& cache;
    int slot;
  };
  Place place_of(int t) const {
    if (together_ == nullptr) return {*cache_, length_ + t};
    const Conversation& own = *(*together_)[static_cast<std::size_t>(t)];
    return {*own.cache, own.length};
  }
  void prepare_angles(int n);
  void embed(const Input& input, Stream& stream, Range rows);
  void run_layer(int index, int n, int member);
  void project(const Layer<Packed>& layer, Stream& stream, int n, int member);
  void position_query(int index, int t, int head, Stream& stream);
  void position_key(int index, int t, int head);
  void turn(int index, int t, float* x, const Floats& bias, const Floats& norm, int head) const;
  struct Pieces {  // of the slots that one token attends to
    int first_slot, first, count;
  };
  Pieces pieces_of(int index, int slot) const;
  void fetch_slots(int index, int member);
  void fetch_weights(const Packed& w, int n, int member, int unit = 1) const;
  void attend_together(int index, int member);
  void attend_apart(int index, int n, int member);
  void attend_each(int index, int n, int member);
  void attend_piece(int index, int t, int kv, const Pieces& pieces, int piece, const Stream& stream, Query* queries);
  void merge(const Query* queries, int stride, int pieces, float* out) const;
  void add(Stream& stream, const Floats& bias, const Floats& post_norm, Range rows);
  void normalise(Stream& stream, const Floats& norm, Range rows) const;
  void feed_forward(const Layer<Packed>& layer, Stream& stream, int n, int member);
  void product(const Packed& w, Input8& input, int n, Floats& out, int member);
  void finish_last(int n, int member);
  void finish_all(const Input& input, float* surprisal, int member);
  void score(const Input& input, int begin, int end, int member);
  void finish_each(int n, const std::vector<float*>& outs, int member);
  bool settle(int t, Conversation& conversation, float* out) const;
  float* head_block(int begin, int end, int n, int member);
  void cap_logits(float* row) const;

  Stream& stream_of(int n, int member) { return n == 1 ? own_[static_cast<std::size_t>(member)] : shared_; }
  Range rows_of(int n, int member) const { return n == 1 ? Range{0, 1} : team_->share(n, member); }
  void meet(int n) {
    if (n > 1) team_->barrier();
  }

  const Shape shape_;
  const std::vector<Rope> ropes_;
  const Path& path_;
  OwnedTeam team_;
  const Weights weights_;
  const int most_capacity_;
  const bool kv_as_bytes_;
  std::unique_ptr<KvCache> cache_;
  const int value_stride_, logit_stride_, head_blocks_, gate_unit_;
  int length_ = 0;
  bool has_logits_ = false;
  const std::vector<Conversation*>* together_ = nullptr;  // whose rows they are, in a run of several

  Stream shared_;
  std::vector<Stream> own_;
  std::vector<Floats> angles_;  // of each rope (kChunk, 2, pairs): cosines and sines
  Floats projected_queries_, projected_keys_, projected_values_, delta_, up_;
  Input8 gate_;
  Floats logits_, next_logits_;
  Floats logit_rows_, chosen_logits_;  // (members, kChunk, rows of some tiles), (kChunk)
  Floats log_sums_;                    // (kChunk, head_blocks_)
  const int seats_;             // query heads that a member attends to at a time, of several tokens
  const int most_pieces_;       // of the slots
  std::vector<Query> queries_;  // (members, seats); of one token (pieces, heads); of rows (members, pieces, group)
  Floats outputs_;              // (as many, value_stride)
};

}  // namespace edgemem
