#include "kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "half.h"

namespace edgemem {
namespace {

// Cosines and sines of the angles by which slots[i] turns to stand at i: (blocks of 16 slots, 2, pairs, 16).
Floats turns_of(const Rope& rope, const std::int64_t* slots, int count) {
  const int pairs = rope.pairs();
  Floats turns(size(round_up(count, 16), 2 * pairs));
  Floats turn(static_cast<std::size_t>(2 * pairs));
  std::int64_t before = -1;  // none: slots only move down, and by less than there are
  for (int to = 0; to < count; ++to) {
    const std::int64_t move = slots[to] - to;
    for (int i = 0; i < pairs && move != before; ++i) {
      const double angle = static_cast<double>(-move) * static_cast<double>(rope.inverse_frequencies[static_cast<std::size_t>(i)]);
      turn[static_cast<std::size_t>(i)] = static_cast<float>(std::cos(angle));
      turn[static_cast<std::size_t>(pairs + i)] = static_cast<float>(std::sin(angle));
    }
    before = move;
    float* lane = turns.data() + size(to / 16 * 16, 2 * pairs) + to % 16;
    for (int i = 0; i < 2 * pairs; ++i) lane[i * 16] = turn[static_cast<std::size_t>(i)];
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
  if (from == to) return;
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
  int first = 0;
  while (first < count && slots[first] == first) ++first;
  if (first == count) return;
  std::map<const Rope*, Floats> turns;
  for (const Rope* rope : ropes)
    if (turns.find(rope) == turns.end()) turns.emplace(rope, turns_of(*rope, slots, count));
  team.run([&](int member) {
    const Range items = team.share(layers_ * kv_heads_, member);
    for (int item = items.begin; item < items.end; ++item) {
      const Rope* rope = ropes[static_cast<std::size_t>(item / kv_heads_)];
      for (int block = first / 16 * 16; block < count; block += 16) {
        const float* cosines = turns.find(rope)->second.data() + size(block, 2 * rope->pairs());
        if (as_bytes_)
          keep_bytes(path, item, slots, block, std::min(block + 16, count), cosines, rope->pairs());
        else
          keep_halves(path, item, slots, block, count, cosines, rope->pairs());
      }
      for (int to = first; to < count; ++to) move_value(item, static_cast<int>(slots[to]), to);
    }
  });
}

// A block of keys at once. Slots only move down, so a block that was written is the source of none after it.
void KvCache::keep_halves(const Path& path, int item, const std::int64_t* slots, int block, int count,
                          const float* cosines, int pairs) {
  const std::uint16_t* sources[16];
  for (int lane = 0; lane < 16; ++lane) {
    const int to = std::min(block + lane, count - 1);  // beyond the last there is nothing to keep
    sources[lane] = key_halves_.data() + key_place(item, static_cast<int>(slots[to]));
  }
  path.turn_keys(sources, cosines, cosines + size(pairs, 16), pairs, head_dim_, key_halves_.data() + key_place(item, block));
}

void KvCache::keep_bytes(const Path& path, int item, const std::int64_t* slots, int begin, int end, const float* cosines,
                         int pairs) {
  float key[kMostHeadDim], turn[kMostHeadDim];
  for (int to = begin; to < end; ++to) {
    if (slots[to] == to) continue;
    for (int i = 0; i < 2 * pairs; ++i) turn[i] = cosines[size(i, 16) + static_cast<std::size_t>(to - begin)];
    read_key(item, static_cast<int>(slots[to]), key);
    path.rotate(key, turn, turn + pairs, pairs);
    write_key(path, item / kv_heads_, item % kv_heads_, to, key);
  }
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
