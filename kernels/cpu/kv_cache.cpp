#include "kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "half.h"

namespace edgemem {
namespace {

// (count, 2, pairs): cosines and sines of the angles by which slots[i] turns to stand at i.
Floats turns_of(const Rope& rope, const std::int64_t* slots, int count) {
  const int pairs = rope.pairs();
  Floats turns(size(count, 2 * pairs));
  std::int64_t before = 0;
  for (int to = 0; to < count; ++to) {
    const std::int64_t move = to - slots[to];
    float* turn = turns.data() + size(to, 2 * pairs);
    if (to > 0 && move == before) {
      std::copy_n(turn - 2 * pairs, 2 * pairs, turn);
      continue;
    }
    before = move;
    for (int i = 0; i < pairs; ++i) {
      const double frequency = static_cast<double>(rope.inverse_frequencies[static_cast<std::size_t>(i)]);
      turn[i] = static_cast<float>(std::cos(static_cast<double>(move) * frequency));
      turn[pairs + i] = static_cast<float>(std::sin(static_cast<double>(move) * frequency));
    }
  }
  return turns;
}

// The values as bytes; gives their scale, the greatest / 127 rounded up to 11 significant bits, NaN if one is no number.
float to_bytes(const float* x, int n, std::int8_t* bytes) {
  constexpr float kLeast = 1e-30f;
  float greatest = 0, zeros = 0;
  for (int i = 0; i < n; ++i) {
    greatest = std::max(greatest, std::fabs(x[i]));
    zeros += 0.0f * x[i];
  }
  std::fill_n(bytes, n, std::int8_t{0});
  if (zeros != 0.0f) return zeros;  // NaN
  if (greatest < kLeast) return 0.0f;
  std::uint32_t bits;
  float scale = greatest / 127.0f;
  std::memcpy(&bits, &scale, 4);
  scale = bits_to_float((bits + 0x1FFF) & ~0x1FFFu);
  for (int i = 0; i < n; ++i) bytes[i] = static_cast<std::int8_t>(std::lrint(x[i] / scale));
  return scale;
}

}  // namespace

KvCache::KvCache(int layers, int kv_heads, int head_dim, int capacity, bool as_bytes)
    : layers_(layers),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      capacity_(capacity),
      slots_(round_up(capacity, 16)),
      stride_(round_up(head_dim, 16)),
      as_bytes_(as_bytes) {
  const std::size_t slots = size(layers * kv_heads, slots_);
  const std::size_t keys = slots * static_cast<std::size_t>(head_dim_), values = slots * static_cast<std::size_t>(stride_);
  if (as_bytes_) {
    key_bytes_ = Buffer<std::int8_t>(keys);
    value_bytes_ = Buffer<std::int8_t>(values);
    key_scales_ = Floats(slots);
    value_scales_ = Floats(slots);
  } else {
    key_halves_ = Buffer<std::uint16_t>(keys, true);
    value_halves_ = Buffer<std::uint16_t>(values, true);
  }
}

KvHead KvCache::head(int layer, int head) const {
  const int item = item_of(layer, head);
  const std::size_t key = key_place(item, 0), value = value_place(item, 0), scale = scale_place(item, 0);
  if (as_bytes_)
    return {key_bytes_.data() + key,    value_bytes_.data() + value, key_scales_.data() + scale,
            value_scales_.data() + scale, head_dim_,                   stride_};
  return {key_halves_.data() + key, value_halves_.data() + value, nullptr, nullptr, head_dim_, stride_};
}

void KvCache::fetch(int layer, int head, int slot, std::size_t bytes) const {
  const int item = item_of(layer, head), first = slot / 16 * 16;
  const std::size_t key = key_place(item, first), value = value_place(item, first);
  const auto fetch_both = [bytes](const char* keys, const char* values) {
    for (std::size_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(keys + at, 1);
      __builtin_prefetch(values + at, 1);
    }
  };
  if (as_bytes_)
    fetch_both(reinterpret_cast<const char*>(key_bytes_.data() + key), reinterpret_cast<const char*>(value_bytes_.data() + value));
  else
    fetch_both(reinterpret_cast<const char*>(key_halves_.data() + key), reinterpret_cast<const char*>(value_halves_.data() + value));
}

void KvCache::write_key(const Path& path, int layer, int head, int slot, const float* key) {
  const int item = item_of(layer, head);
  const std::size_t place = key_place(item, slot);
  if (as_bytes_) {
    std::int8_t bytes[kMostHeadDim];
    key_scales_[scale_place(item, slot)] = to_bytes(key, head_dim_, bytes);
    for (int d = 0; d < head_dim_; ++d) key_bytes_[place + size(d, 16)] = bytes[d];
    return;
  }
  alignas(64) float padded[kMostHeadDim] = {};
  std::uint16_t halves[kMostHeadDim];
  std::copy_n(key, head_dim_, padded);
  path.to_half(padded, stride_, halves);
  for (int d = 0; d < head_dim_; ++d) key_halves_[place + size(d, 16)] = halves[d];
}

void KvCache::write_value(const Path& path, int layer, int head, int slot, const float* value) {
  const int item = item_of(layer, head);
  const std::size_t place = value_place(item, slot);
  if (as_bytes_) {
    value_scales_[scale_place(item, slot)] = to_bytes(value, head_dim_, value_bytes_.data() + place);
    return;
  }
  alignas(64) float padded[kMostHeadDim] = {};
  std::copy_n(value, head_dim_, padded);
  path.to_half(padded, stride_, value_halves_.data() + place);
}

void KvCache::read_key(int item, int slot, float* key) const {
  const std::size_t place = key_place(item, slot);
  for (int d = 0; d < head_dim_; ++d)
    key[d] = as_bytes_ ? key_scales_[scale_place(item, slot)] * static_cast<float>(key_bytes_[place + size(d, 16)])
                       : half_to_float(key_halves_[place + size(d, 16)]);
}

void KvCache::read_value(int item, int slot, float* value) const {
  const std::size_t place = value_place(item, slot);
  for (int d = 0; d < head_dim_; ++d) {
    const std::size_t at = place + static_cast<std::size_t>(d);
    value[d] = as_bytes_ ? value_scales_[scale_place(item, slot)] * static_cast<float>(value_bytes_[at])
                         : half_to_float(value_halves_[at]);
  }
}

void KvCache::move_value(int item, int from, int to) {
  const std::size_t source = value_place(item, from), target = value_place(item, to);
  if (as_bytes_) {
    std::copy_n(value_bytes_.data() + source, stride_, value_bytes_.data() + target);
    value_scales_[scale_place(item, to)] = value_scales_[scale_place(item, from)];
  } else {
    std::copy_n(value_halves_.data() + source, stride_, value_halves_.data() + target);
  }
}

void KvCache::keep(const Path& path, const std::int64_t* slots, int count, const std::vector<const Rope*>& ropes,
                   Team& team) {
  std::map<const Rope*, Floats> turns;
  for (const Rope* rope : ropes)
    if (turns.find(rope) == turns.end()) turns.emplace(rope, turns_of(*rope, slots, count));
  team.run([&](int member) {
    float key[kMostHeadDim];
    const Range items = team.share(layers_ * kv_heads_, member);
    for (int item = items.begin; item < items.end; ++item) {
      const Rope* rope = ropes[static_cast<std::size_t>(item / kv_heads_)];
      const float* angles = turns.find(rope)->second.data();
      for (int to = 0; to < count; ++to) {
        const int from = static_cast<int>(slots[to]), pairs = rope->pairs();
        if (from == to) continue;
        const float* cosines = angles + size(to, 2 * pairs);
        read_key(item, from, key);
        path.rotate(key, cosines, cosines + pairs, pairs);
        write_key(path, item / kv_heads_, item % kv_heads_, to, key);
        move_value(item, from, to);
      }
    }
  });
}

void KvCache::read(float* keys, float* values, int count) const {
  for (int item = 0; item < layers_ * kv_heads_; ++item)
    for (int slot = 0; slot < count; ++slot, keys += head_dim_, values += head_dim_) {
      read_key(item, slot, keys);
      read_value(item, slot, values);
    }
}

void KvCache::write(const Path& path, const float* keys, const float* values, int count) {
  for (int item = 0; item < layers_ * kv_heads_; ++item)
    for (int slot = 0; slot < count; ++slot, keys += head_dim_, values += head_dim_) {
      write_key(path, item / kv_heads_, item % kv_heads_, slot, keys);
      write_value(path, item / kv_heads_, item % kv_heads_, slot, values);
    }
}

}  // namespace edgemem
