#include "path.h"

#if defined(__x86_64__)
#define EDGEMEM_PATH_AVX512
#include "kernels.h"

namespace edgemem {
const Path* avx512_path() {
  static constexpr Path path = make_path("avx512");
  return &path;
}
}  // namespace edgemem

#else

namespace edgemem {
const Path* avx512_path() { return nullptr; }
}  // namespace edgemem

#endif
