#pragma once
#include <cstdint>
#include <vector>

#include "memory.h"
#include "model.h"
#include "path.h"
#include "team.h"

namespace edgemem {

// Keys and values of some layers in the layout of KvHead. It does not know how many slots are in use.
// As bytes, a key or value of one slot has one scale of 11 significant bits, so that reading and writing it again, in
// floats, changes nothing.
class KvCache {
 public:
  KvCache(int layers, int kv_heads, int head_dim, int capacity, bool as_bytes);

  int capacity() const { return capacity_; }
  KvHead head(int layer, int head) const;

  // One slot of one head: (head_dim) floats.
  void write_key(const Path& path, int layer, int head, int slot, const float* key);
  void write_value(const Path& path, int layer, int head, int slot, const float* value);

  // Has the processor fetch keys and values from this slot's block on; so many bytes of each.
  void fetch(int layer, int head, int slot, std::size_t bytes) const;

  // Slots, strictly rising, to 0..count-1, keys turned to their new positions. ropes: of each layer.
  void keep(const Path& path, const std::int64_t* slots, int count, const std::vector<const Rope*>& ropes, Team& team);

  // (layers, kv_heads, count, head_dim) floats, from slot 0 on.
  void read(float* keys, float* values, int count) const;
  void write(const Path& path, const float* keys, const float* values, int count);

 private:
  int item_of(int layer, int head) const { return layer * kv_heads_ + head; }
  // Where a slot's key begins, its dimensions 16 apart; and its value, its dimensions side by side.
  std::size_t key_place(int item, int slot) const {
    return size(item, slots_) * static_cast<std::size_t>(head_dim_) + size(slot / 16 * 16, head_dim_) +
           static_cast<std::size_t>(slot % 16);
  }
  std::size_t value_place(int item, int slot) const {
    return size(item, slots_) * static_cast<std::size_t>(stride_) + size(slot, stride_);
  }
  std::size_t scale_place(int item, int slot) const { return size(item, slots_) + static_cast<std::size_t>(slot); }

  void read_key(int item, int slot, float* key) const;
  void read_value(int item, int slot, float* value) const;
  void move_value(int item, int from, int to);
  // What keep does to the keys of 16 slots. cosines: (2, pairs, 16), the sines behind them.
  void keep_halves(const Path& path, int item, const std::int64_t* slots, int block, int count, const float* cosines,
                   int pairs);
  void keep_bytes(const Path& path, int item, const std::int64_t* slots, int begin, int end, const float* cosines,
                  int pairs);

  const int layers_, kv_heads_, head_dim_, capacity_, slots_, stride_;
  const bool as_bytes_;
  Buffer<std::uint16_t> key_halves_, value_halves_;  // one pair of these
  Buffer<std::int8_t> key_bytes_, value_bytes_;
  Floats key_scales_, value_scales_;  // with the bytes
};

}  // namespace edgemem
