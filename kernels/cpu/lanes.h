// Sixteen lanes of float or int32: one struct Lanes per instruction set, all with the same operations. Only the
// path_*.cpp files include it, each compiled for its own instruction set; everything lies in an anonymous namespace, so
// that no function built for a newer processor can be linked into code that runs on an older one.
//
// Of NaN: max(a, b) and min(a, b) give b where either is NaN.
#pragma once

#if defined(EDGEMEM_PATH_AVX512)
#include "lanes_avx512.h"
#elif defined(EDGEMEM_PATH_AVX2)
#include "lanes_avx2.h"
#elif defined(EDGEMEM_PATH_NEON)
#include "lanes_neon.h"
#else
#include "lanes_plain.h"
#endif
