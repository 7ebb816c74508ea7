#pragma once
#include <vector>

#include "model.h"
#include "pack.h"
#include "team.h"

namespace edgemem {

// The weights of a range of layers, packed. The embedding stays in the mapped package, of which single rows are read.
struct Weights {
  std::vector<Layer<Packed>> layers;
  Table embedding;
  Packed head;
  Floats norm;
  Buffer<std::uint8_t> block;  // what all Packed point into: one, so that huge pages are not half empty
};

// `head` is not looked at where the shape has none.
Weights pack_weights(std::vector<Layer<Table>> layers, const Shape& shape, const Table& embedding, const Table& head,
                     Floats norm, Team& team);

}  // namespace edgemem
