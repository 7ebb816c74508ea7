#include "path.h"

#if defined(__aarch64__)
#define EDGEMEM_PATH_NEON
#include "kernels.h"

namespace edgemem {
const Path* neon_path() {
  static constexpr Path path = make_path("neon");
  return &path;
}
}  // namespace edgemem

#else

namespace edgemem {
const Path* neon_path() { return nullptr; }
}  // namespace edgemem

#endif
