#include "kernels.h"

namespace edgemem {
const Path* plain_path() {
  static constexpr Path path = make_path("plain");
  return &path;
}
}  // namespace edgemem
