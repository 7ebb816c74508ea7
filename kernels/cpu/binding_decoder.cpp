// Decoder and Sampler as Python sees them: every argument checked, the GIL released while they compute.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "binding.h"
#include "decoder.h"

namespace edgemem {
namespace {

constexpr int kMostHeads = 4096, kMostHidden = 1 << 22, kMostVocabulary = 1 << 20, kMostCapacity = 1 << 24;
constexpr int kMostLayers = 1024, kMostMembers = 1024;

void check(const Shape& s) {
  require(s.hidden > 0 && s.hidden <= kMostHidden && s.hidden % 16 == 0, "hidden is a multiple of 16", s.hidden);
  require(s.intermediate > 0 && s.intermediate <= kMostHidden && s.intermediate % 16 == 0,
          "intermediate is a multiple of 16", s.intermediate);
  require(s.heads > 0 && s.heads <= kMostHeads, "heads are out of range", s.heads);
  require(s.kv_heads > 0 && s.kv_heads <= s.heads && s.heads % s.kv_heads == 0, "kv_heads divide heads", s.kv_heads);
  require(s.head_dim > 0 && s.head_dim <= kMostHeadDim, "head_dim is out of range", s.head_dim);
  require(s.query_rows() % 16 == 0, "heads * head_dim is a multiple of 16", s.query_rows());
  require(s.vocabulary > 0 && s.vocabulary <= kMostVocabulary, "vocabulary is out of range", s.vocabulary);
  for (float value : {s.norm_epsilon, s.attention_scale, s.embedding_scale, s.attention_softcap, s.logit_softcap})
    require(std::isfinite(value) && value >= 0, "the shape's numbers are finite and not negative", value);
}

const Table& checked_table(const nb::handle& given, const char* name, int rows, int columns) {
  const GivenTable* made = nullptr;
  if (!nb::try_cast(given, made) || made == nullptr) throw nb::type_error("a matrix is no Table");
  const Table& table = made->table;
  require(table.rows == rows && table.columns == columns,
          std::string(name) + " is (" + std::to_string(rows) + ", " + std::to_string(columns) + ")", table.columns);
  return table;
}

Floats vector_of(const nb::dict& vectors, const char* name, int length, bool is_optional = true) {
  if (!vectors.contains(name)) {
    if (!is_optional) refuse(std::string(name) + " is missing");
    return {};
  }
  const auto array = array_of<Array<const float, 1>>(vectors[name], name);
  require(array.size() == static_cast<std::size_t>(length), std::string(name) + " has another length", array.size());
  Floats out(array.size());
  std::copy_n(array.data(), array.size(), out.data());
  return out;
}

std::vector<Rope> checked_ropes(std::vector<std::pair<std::vector<float>, float>> given, const Shape& shape) {
  std::vector<Rope> ropes;
  for (auto& [frequencies, amplitude] : given) {
    const std::size_t pairs = frequencies.size();
    require(pairs > 0 && 2 * pairs <= static_cast<std::size_t>(shape.head_dim), "a rope has other pairs", pairs);
    for (float value : frequencies) require(std::isfinite(value), "a rope's frequencies are finite", value);
    require(std::isfinite(amplitude), "a rope's amplitude is finite", amplitude);
    ropes.push_back({std::move(frequencies), amplitude});
  }
  return ropes;
}

Layer<Table> checked_layer(const nb::dict& matrices, const nb::dict& vectors, int rope, int window, const Shape& s,
                           std::size_t ropes) {
  Layer<Table> layer;
  auto matrix = [&](const char* name, int rows, int columns) {
    return checked_table(matrices[name], name, rows, columns);
  };
  layer.query = matrix("query", s.query_rows(), s.hidden);
  layer.key = matrix("key", s.key_rows(), s.hidden);
  layer.value = matrix("value", s.key_rows(), s.hidden);
  layer.output = matrix("output", s.hidden, s.query_rows());
  layer.gate = matrix("gate", s.intermediate, s.hidden);
  layer.up = matrix("up", s.intermediate, s.hidden);
  layer.down = matrix("down", s.hidden, s.intermediate);
  layer.attention_norm = vector_of(vectors, "attention_norm", s.hidden, false);
  layer.mlp_norm = vector_of(vectors, "mlp_norm", s.hidden, false);
  layer.attention_post_norm = vector_of(vectors, "attention_post_norm", s.hidden);
  layer.mlp_post_norm = vector_of(vectors, "mlp_post_norm", s.hidden);
  layer.query_norm = vector_of(vectors, "query_norm", s.head_dim);
  layer.key_norm = vector_of(vectors, "key_norm", s.head_dim);
  layer.query_bias = vector_of(vectors, "query_bias", s.query_rows());
  layer.key_bias = vector_of(vectors, "key_bias", s.key_rows());
  layer.value_bias = vector_of(vectors, "value_bias", s.key_rows());
  layer.output_bias = vector_of(vectors, "output_bias", s.hidden);
  require(rope >= 0 && static_cast<std::size_t>(rope) < ropes, "there is no such rope", rope);
  require(window >= 0 && window <= kMostCapacity, "window is out of range", window);
  layer.rope = rope;
  layer.window = window;
  return layer;
}

// Slots and logits of a conversation that is not under way. Only the decoder that made it can take it up.
struct NativeConversation {
  std::unique_ptr<Conversation> held;
  std::uint64_t maker;
};

class NativeDecoder {
 public:
  using RopeList = std::vector<std::pair<std::vector<float>, float>>;

  // layers: of (matrices, vectors, rope, window). processors: the number of threads is theirs; -1 for anywhere.
  NativeDecoder(const Shape& shape, const RopeList& ropes, const nb::list& layers, const nb::object& embedding,
                const nb::object& head, const nb::object& norm, int capacity, bool kv_as_bytes,
                const std::vector<int>& processors, const std::string& path)
      : embedding_(embedding) {
    check(shape);
    require(capacity > 0 && capacity <= kMostCapacity, "capacity is out of range", capacity);
    require(!processors.empty() && processors.size() <= kMostMembers, "threads are out of range", processors.size());
    require(layers.size() > 0 && layers.size() <= kMostLayers, "layers are out of range", layers.size());
    std::vector<Rope> rope_list = checked_ropes(ropes, shape);
    std::vector<Layer<Table>> layer_list;
    for (nb::handle given : layers) {
      const auto parts = value_of<nb::tuple>(given, "a layer");
      require(parts.size() == 4, "a layer has four parts", parts.size());
      layer_list.push_back(checked_layer(value_of<nb::dict>(parts[0], "tables"), value_of<nb::dict>(parts[1], "vectors"),
                                         value_of<int>(parts[2], "rope"), value_of<int>(parts[3], "window"), shape, rope_list.size()));
    }
    Table embedding_table, head_table;
    Floats norm_values;
    if (shape.has_embedding) embedding_table = checked_table(embedding, "embedding", shape.vocabulary, shape.hidden);
    if (shape.has_head) {
      head_table = checked_table(head, "head", shape.vocabulary, shape.hidden);
      nb::dict vectors;
      vectors["norm"] = norm;
      norm_values = vector_of(vectors, "norm", shape.hidden, false);
    }
    const Path& chosen = choose_path(path);
    nb::gil_scoped_release release;
    OwnedTeam team(new Team(static_cast<int>(processors.size()), processors));
    decoder_ = std::make_unique<Decoder>(shape, std::move(layer_list), std::move(rope_list), embedding_table, head_table,
                                         std::move(norm_values), capacity, kv_as_bytes, chosen, std::move(team));
  }

  bool extend_tokens(Array<const std::int32_t, 1> tokens, const nb::object& surprisal) {
    const Use use(*this);
    require(use->shape().has_embedding && use->shape().has_head, "these layers do not go from tokens to logits", 0);
    float* scores = surprisal.is_none() ? nullptr : rows_of(surprisal, tokens.size(), 1);
    check_tokens(*use, tokens);
    return run(*use, {tokens.data(), nullptr, static_cast<int>(tokens.size())}, nullptr, scores);
  }

  bool tokens_to_states(Array<const std::int32_t, 1> tokens, const nb::object& out) {
    const Use use(*this);
    require(use->shape().has_embedding && !use->shape().has_head, "these layers do not go from tokens to states", 0);
    check_tokens(*use, tokens);
    float* rows = rows_of(out, tokens.size(), use->shape().hidden);
    return run(*use, {tokens.data(), nullptr, static_cast<int>(tokens.size())}, rows, nullptr);
  }

  // tokens: whose states they are, with the surprisals that they are wanted for, or None.
  bool extend_states(Array<const float, 2> states, const nb::object& out, const nb::object& tokens,
                     const nb::object& surprisal) {
    const Use use(*this);
    const Shape& shape = use->shape();
    require(!shape.has_embedding && states.shape(1) == static_cast<std::size_t>(shape.hidden), "states of another width",
            states.shape(1));
    check_room(*use, states.shape(0));
    require(out.is_none() == shape.has_head, "states come out without the head only", 0);
    float* rows = shape.has_head ? nullptr : rows_of(out, states.shape(0), shape.hidden);
    const int n = static_cast<int>(states.shape(0));
    require(tokens.is_none() == surprisal.is_none() && (tokens.is_none() || shape.has_head),
            "surprisals want the tokens, and the head", n);
    if (tokens.is_none()) return run(*use, {nullptr, states.data(), n}, rows, nullptr);
    const auto ids = array_of<Array<const std::int32_t, 1>>(tokens, "tokens");
    require(ids.size() == states.shape(0), "a token for each state is wanted", ids.size());
    check_tokens(*use, ids);
    return run(*use, {ids.data(), states.data(), n}, rows, rows_of(surprisal, ids.size(), 1));
  }

  // Consumes `pending` unless it is negative, then samples; and so on, until `limit` tokens are sampled or
  // `milliseconds` have passed. The last token is not consumed. Gives ids, surprisals (empty if not asked for), and
  // whether all logits were finite.
  nb::tuple decode(Sampler& sampler, std::int32_t pending, int limit, double milliseconds, bool surprisal) {
    const Use use(*this);
    require(use->has_logits(), "there are no logits to sample from", limit);
    require(pending < use->shape().vocabulary, "a token outside the vocabulary", pending);
    require(sampler.vocabulary() == use->shape().vocabulary, "a sampler of another vocabulary", sampler.vocabulary());
    require(limit > 0 && limit <= kMostCapacity, "limit is out of range", limit);
    check_room(*use, static_cast<std::size_t>(limit - (pending < 0 ? 1 : 0)), true);
    std::vector<std::int32_t> ids;
    std::vector<float> surprisals;
    bool is_finite = true;
    {
      nb::gil_scoped_release release;
      const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double, std::milli>(milliseconds);
      do {
        is_finite = pending < 0 || use->extend({&pending, nullptr, 1}, nullptr, nullptr, [] {});
        if (!is_finite) break;
        pending = sampler.sample(use->logits());
        ids.push_back(pending);
        if (surprisal) surprisals.push_back(use->surprisal_of(pending));
      } while (static_cast<int>(ids.size()) < limit && std::chrono::steady_clock::now() < end);
    }
    return nb::make_tuple(ids, surprisals, is_finite);
  }

  void copy_logits(Array<float, 1> out) {
    const Use use(*this);
    require(use->shape().has_head && out.size() == static_cast<std::size_t>(use->shape().vocabulary),
            "logits want one float a token", out.size());
    std::copy_n(use->logits(), out.size(), out.data());
  }

  void truncate(int length) {
    const Use use(*this);
    require(length >= 0 && length <= use->length(), "there are not so many slots in use", length);
    use->truncate(length);
  }

  void keep(Array<const std::int64_t, 1> slots) {
    const Use use(*this);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::int64_t slot = slots.data()[i];
      require(slot >= 0 && slot < use->length() && (i == 0 || slots.data()[i - 1] < slot), "slots rise and are in use", slot);
    }
    nb::gil_scoped_release release;
    use->keep(slots.data(), static_cast<int>(slots.size()));
  }

  // (layers * kv_heads * length * head_dim) floats each.
  void read_state(Array<float, 1> keys, Array<float, 1> values) {
    const Use use(*this);
    check_state(*use, use->length(), keys.size(), values.size());
    nb::gil_scoped_release release;
    use->read_state(keys.data(), values.data());
  }

  void write_state(Array<const float, 1> keys, Array<const float, 1> values, int length,
                   const nb::object& logits) {
    const Use use(*this);
    require(length >= 0 && length <= use->capacity(), "there are not so many slots", length);
    check_state(*use, length, keys.size(), values.size());
    const float* row = nullptr;
    if (!logits.is_none()) {
      const auto given = array_of<Array<const float, 1>>(logits, "logits");
      require(use->shape().has_head && given.size() == static_cast<std::size_t>(use->shape().vocabulary),
              "logits of another vocabulary", given.size());
      row = given.data();
    }
    nb::gil_scoped_release release;
    use->write_state(keys.data(), values.data(), length, row);
  }

  std::unique_ptr<NativeConversation> conversation(int capacity) {
    const Use use(*this);
    require(capacity > 0 && capacity <= use->most_capacity(), "capacity is out of range", capacity);
    return std::make_unique<NativeConversation>(NativeConversation{use->make_conversation(capacity), id_});
  }

  // Go on with another conversation, and put the one of now in its place.
  void exchange(NativeConversation& other) {
    const Use use(*this);
    require(other.maker == id_, "a conversation of another decoder", 0);
    use->exchange(*other.held);
  }

  // One row for each of some conversations: tokens, or states, and None for the other. outs: of each its logits, or its
  // state, to fill. Gives for each whether it is finite.
  std::vector<bool> extend_together(const nb::list& conversations, const nb::object& tokens, const nb::object& states,
                                    const nb::list& outs) {
    const Use use(*this);
    const Shape& shape = use->shape();
    const std::size_t n = conversations.size();
    require(n > 0 && n <= Decoder::kChunk && outs.size() == n, "a row and a result for each conversation, 1 to 128", n);
    require(tokens.is_none() != shape.has_embedding && states.is_none() == shape.has_embedding,
            "these layers take tokens, or states, and not the other", n);
    Array<const std::int32_t, 1> ids;
    Array<const float, 2> rows;
    if (shape.has_embedding) {
      ids = array_of<Array<const std::int32_t, 1>>(tokens, "tokens");
      require(ids.size() == n, "a token for each conversation is wanted", ids.size());
      check_vocabulary(*use, ids);
    } else {
      rows = array_of<Array<const float, 2>>(states, "states");
      require(rows.shape(0) == n && rows.shape(1) == static_cast<std::size_t>(shape.hidden), "states of another shape",
              rows.shape(0));
    }
    // All is held until the end: the lists may be changed meanwhile.
    std::vector<nb::object> given;
    std::vector<Array<float, 1>> arrays;
    std::vector<Conversation*> taken;
    std::vector<float*> results;
    for (std::size_t i = 0; i < n; ++i) {
      given.emplace_back(conversations[i]);
      taken.push_back(&checked_conversation(given.back(), taken));
      arrays.push_back(array_of<Array<float, 1>>(nb::object(outs[i]), "a result"));
      require(arrays.back().size() == static_cast<std::size_t>(shape.has_head ? shape.vocabulary : shape.hidden),
              "a result of another length", arrays.back().size());
      results.push_back(arrays.back().data());
    }
    nb::gil_scoped_release release;
    return use->extend_together({ids.data(), rows.data(), static_cast<int>(n)}, taken, results);
  }

  int length() { return Use(*this)->length(); }
  int capacity() { return Use(*this)->capacity(); }
  bool has_logits() { return Use(*this)->has_logits(); }
  std::string path() { return Use(*this)->path().name; }

  // Ends the threads and frees the memory. Any later call is refused.
  void close() {
    const Use use(*this);
    nb::gil_scoped_release release;
    decoder_.reset();
  }

 private:
  // One call at a time, and only while it is open.
  class Use {
   public:
    explicit Use(NativeDecoder& owner) : owner_(owner) {
      if (owner_.busy_.test_and_set()) throw std::runtime_error("the engine is in use by another thread");
      if (owner_.decoder_ == nullptr) {
        owner_.busy_.clear();
        throw std::runtime_error("the engine is closed");
      }
    }
    ~Use() { owner_.busy_.clear(); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    Decoder* operator->() const { return owner_.decoder_.get(); }
    Decoder& operator*() const { return *owner_.decoder_; }

   private:
    NativeDecoder& owner_;
  };

  static bool run(Decoder& decoder, const Decoder::Input& input, float* states, float* surprisal) {
    nb::gil_scoped_release release;
    return decoder.extend(input, states, surprisal, [] {
      nb::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    });
  }

  static void check_room(const Decoder& decoder, std::size_t n, bool may_be_none = false) {
    require(n > 0 || may_be_none, "nothing to consume", n);
    require(n <= static_cast<std::size_t>(decoder.capacity() - decoder.length()), "the slots do not suffice", n);
  }

  static void check_tokens(const Decoder& decoder, const Array<const std::int32_t, 1>& tokens) {
    check_room(decoder, tokens.size());
    check_vocabulary(decoder, tokens);
  }

  static void check_vocabulary(const Decoder& decoder, const Array<const std::int32_t, 1>& tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      require(tokens.data()[i] >= 0 && tokens.data()[i] < decoder.shape().vocabulary, "a token outside the vocabulary",
              tokens.data()[i]);
  }

  // One of this decoder's, with room for a row, and none of those `before`.
  Conversation& checked_conversation(const nb::handle& given, const std::vector<Conversation*>& before) const {
    NativeConversation* made = nullptr;
    if (!nb::try_cast(given, made) || made == nullptr) throw nb::type_error("a conversation is of another type");
    require(made->maker == id_, "a conversation of another decoder", 0);
    Conversation& held = *made->held;
    require(std::find(before.begin(), before.end(), &held) == before.end(), "a conversation twice", before.size());
    require(held.length < held.cache->capacity(), "the slots do not suffice", held.length);
    return held;
  }

  void check_state(const Decoder& decoder, int length, std::size_t keys, std::size_t values) const {
    const std::size_t wanted = decoder.state_items(length);
    require(keys == wanted && values == wanted, "keys and values want " + std::to_string(wanted) + " items", keys);
  }

  static float* rows_of(const nb::object& out, std::size_t rows, int columns) {
    if (columns == 1) {
      auto array = array_of<Array<float, 1>>(out, "surprisal");
      require(array.size() == rows, "one float a token is wanted", array.size());
      return array.data();
    }
    auto array = array_of<Array<float, 2>>(out, "states");
    require(array.shape(0) == rows && array.shape(1) == static_cast<std::size_t>(columns), "states of another shape",
            array.shape(0));
    return array.data();
  }

  static std::uint64_t next_id() {
    static std::atomic<std::uint64_t> made{0};
    return ++made;
  }

  const std::uint64_t id_ = next_id();
  nb::object embedding_;  // its rows are read from the mapped package for as long as this lives
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::unique_ptr<Decoder> decoder_;
};

void make_sampler(Sampler* place, int vocabulary, const std::string& path, float temperature, std::uint64_t top_k,
                  double top_p, float log_min_p, float repetition_penalty, std::uint64_t seed, std::uint64_t draws,
                  Array<const std::int32_t, 1> seen) {
  require(vocabulary > 0 && vocabulary <= kMostVocabulary, "vocabulary is out of range", vocabulary);
  require(temperature >= 0 && std::isfinite(temperature), "temperature is out of range", temperature);
  require(top_p > 0 && top_p <= 1, "top_p is out of range", top_p);
  require(log_min_p <= 0, "log_min_p is out of range", log_min_p);
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty), "the penalty is out of range", repetition_penalty);
  std::vector<std::int32_t> tokens(seen.data(), seen.data() + seen.size());
  for (std::int32_t token : tokens)
    require(token >= 0 && token < vocabulary, "a token outside the vocabulary", token);
  const Sampling settings = {temperature, log_min_p, repetition_penalty, top_p, top_k, seed, draws};
  new (place) Sampler(settings, tokens, vocabulary, choose_path(path));
}

std::int32_t sample(Sampler& sampler, Array<const float, 1> logits) {
  require(logits.size() == static_cast<std::size_t>(sampler.vocabulary()), "logits of another vocabulary", logits.size());
  Floats lanes(static_cast<std::size_t>(round_up(sampler.vocabulary(), 16)));
  std::copy_n(logits.data(), logits.size(), lanes.data());
  std::fill(lanes.data() + logits.size(), lanes.data() + lanes.size(), kLowest);
  return sampler.sample(lanes.data());
}

}  // namespace

void bind_decoder(nb::module_& module) {
  nb::class_<Shape>(module, "Shape")
      .def(nb::init<>())
      .def_rw("hidden", &Shape::hidden)
      .def_rw("intermediate", &Shape::intermediate)
      .def_rw("heads", &Shape::heads)
      .def_rw("kv_heads", &Shape::kv_heads)
      .def_rw("head_dim", &Shape::head_dim)
      .def_rw("vocabulary", &Shape::vocabulary)
      .def_rw("norm_epsilon", &Shape::norm_epsilon)
      .def_rw("attention_scale", &Shape::attention_scale)
      .def_rw("embedding_scale", &Shape::embedding_scale)
      .def_rw("attention_softcap", &Shape::attention_softcap)
      .def_rw("logit_softcap", &Shape::logit_softcap)
      .def_rw("gelu", &Shape::gelu)
      .def_rw("has_embedding", &Shape::has_embedding)
      .def_rw("has_head", &Shape::has_head);
  nb::class_<Sampler>(module, "Sampler")
      .def("__init__", &make_sampler, nb::arg("vocabulary"), nb::arg("path"), nb::arg("temperature"), nb::arg("top_k"),
           nb::arg("top_p"), nb::arg("log_min_p"), nb::arg("repetition_penalty"), nb::arg("seed"), nb::arg("draws"),
           nb::arg("seen"))
      .def("sample", &sample, nb::arg("logits"));
  nb::class_<NativeConversation>(module, "Conversation")
      .def_prop_ro("length", [](const NativeConversation& self) { return self.held->length; })
      .def_prop_ro("capacity", [](const NativeConversation& self) { return self.held->cache->capacity(); });
  nb::class_<NativeDecoder>(module, "Decoder")
      .def(nb::init<const Shape&, const NativeDecoder::RopeList&, const nb::list&, const nb::object&, const nb::object&,
                    const nb::object&, int, bool, const std::vector<int>&, const std::string&>(),
           nb::arg("shape"), nb::arg("ropes"), nb::arg("layers"), nb::arg("embedding").none(), nb::arg("head").none(),
           nb::arg("norm").none(), nb::arg("capacity"), nb::arg("kv_as_bytes"), nb::arg("processors"), nb::arg("path"))
      .def("extend_tokens", &NativeDecoder::extend_tokens, nb::arg("tokens"), nb::arg("surprisal").none() = nb::none())
      .def("tokens_to_states", &NativeDecoder::tokens_to_states, nb::arg("tokens"), nb::arg("out"))
      .def("extend_states", &NativeDecoder::extend_states, nb::arg("states"), nb::arg("out").none() = nb::none(),
           nb::arg("tokens").none() = nb::none(), nb::arg("surprisal").none() = nb::none())
      .def("conversation", &NativeDecoder::conversation, nb::arg("capacity"))
      .def("exchange", &NativeDecoder::exchange, nb::arg("other"))
      .def("extend_together", &NativeDecoder::extend_together, nb::arg("conversations"), nb::arg("tokens").none(),
           nb::arg("states").none(), nb::arg("outs"))
      .def("decode", &NativeDecoder::decode, nb::arg("sampler"), nb::arg("pending"), nb::arg("limit"),
           nb::arg("milliseconds"), nb::arg("surprisal"))
      .def("copy_logits", &NativeDecoder::copy_logits, nb::arg("out"))
      .def("truncate", &NativeDecoder::truncate, nb::arg("length"))
      .def("keep", &NativeDecoder::keep, nb::arg("slots"))
      .def("read_state", &NativeDecoder::read_state, nb::arg("keys"), nb::arg("values"))
      .def("write_state", &NativeDecoder::write_state, nb::arg("keys"), nb::arg("values"), nb::arg("length"),
           nb::arg("logits").none())
      .def_prop_ro("length", &NativeDecoder::length)
      .def_prop_ro("capacity", &NativeDecoder::capacity)
      .def_prop_ro("has_logits", &NativeDecoder::has_logits)
      .def_prop_ro("path", &NativeDecoder::path)
      .def("close", &NativeDecoder::close);
}

}  // namespace edgemem
