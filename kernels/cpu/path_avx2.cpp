#include "path.h"

#if defined(__x86_64__)
#define EDGEMEM_PATH_AVX2
#include "kernels.h"

namespace edgemem {
const Path* avx2_path() {
  static constexpr Path path = make_path("avx2");
  return &path;
}
}  // namespace edgemem

#else

namespace edgemem {
const Path* avx2_path() { return nullptr; }
}  // namespace edgemem

#endif
