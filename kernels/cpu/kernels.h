// All kernels of one path. Included by the path_*.cpp files alone; see lanes.h.
#pragma once
#include "kernels_attention.h"
#include "kernels_product.h"
#include "kernels_vector.h"
#include "path.h"

namespace edgemem {
namespace {

constexpr Path make_path(const char* name) {
  return {name,   Lanes::kQueries, matmul,       quantize, rms_norm, rotate,      turn_keys, gated,
          attend, to_half,         exponentials, softcap,  greatest, log_sum_exp, finite};
}

}  // namespace
}  // namespace edgemem
