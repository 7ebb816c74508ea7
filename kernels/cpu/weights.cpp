#include "weights.h"

#include <utility>

namespace edgemem {
namespace {

constexpr Table Layer<Table>::*kTables[] = {&Layer<Table>::query,  &Layer<Table>::key,  &Layer<Table>::value,
                                            &Layer<Table>::output, &Layer<Table>::gate, &Layer<Table>::up,
                                            &Layer<Table>::down};
constexpr Packed Layer<Packed>::*kPacked[] = {&Layer<Packed>::query,  &Layer<Packed>::key,  &Layer<Packed>::value,
                                              &Layer<Packed>::output, &Layer<Packed>::gate, &Layer<Packed>::up,
                                              &Layer<Packed>::down};

Layer<Packed> without_matrices(Layer<Table>&& given) {
  Layer<Packed> layer;
  layer.attention_norm = std::move(given.attention_norm);
  layer.mlp_norm = std::move(given.mlp_norm);
  layer.attention_post_norm = std::move(given.attention_post_norm);
  layer.mlp_post_norm = std::move(given.mlp_post_norm);
  layer.query_norm = std::move(given.query_norm);
  layer.key_norm = std::move(given.key_norm);
  layer.query_bias = std::move(given.query_bias);
  layer.key_bias = std::move(given.key_bias);
  layer.value_bias = std::move(given.value_bias);
  layer.output_bias = std::move(given.output_bias);
  layer.rope = given.rope;
  layer.window = given.window;
  return layer;
}

}  // namespace

Weights pack_weights(std::vector<Layer<Table>> layers, const Shape& shape, const Table& embedding, const Table& head,
                     Floats norm, Team& team) {
  Weights weights;
  weights.embedding = embedding;
  weights.norm = std::move(norm);
  std::vector<std::pair<Table, Packed*>> matrices;
  weights.layers.reserve(layers.size());
  for (Layer<Table>& given : layers) {
    weights.layers.push_back(without_matrices(std::move(given)));
    for (int i = 0; i < 7; ++i) matrices.emplace_back(given.*kTables[i], &(weights.layers.back().*kPacked[i]));
  }
  if (shape.has_head) matrices.emplace_back(head, &weights.head);

  std::size_t bytes = 0;
  for (const auto& [table, packed] : matrices) bytes += table.packed().bytes();
  weights.block = Buffer<std::uint8_t>(bytes, true);
  std::uint8_t* next = weights.block.data();
  for (auto& [table, packed] : matrices) {
    *packed = table.packed();
    packed->data = next;
    next += packed->bytes();
  }
  // Each member packs about the tiles that it will read, so that on a machine of several memories they lie near it.
  team.run([&](int member) {
    for (const auto& [table, packed] : matrices) {
      const Range tiles = team.share(packed->tiles(), member);
      pack(table, weights.block.data() + (packed->data - weights.block.data()), tiles.begin, tiles.end);
    }
  });
  return weights;
}

}  // namespace edgemem
