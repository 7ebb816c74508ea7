#pragma once
#include <cstddef>
#include <vector>

namespace edgemem {

// Seconds of each of `repeats` read-only passes over a buffer of `bytes`, cut evenly over `threads`.
// The buffer is freshly filled with non-zero values by the threads that read it. Throws std::bad_alloc,
// std::invalid_argument.
std::vector<double> read_sweep(std::size_t bytes, int threads, int repeats);

}  // namespace edgemem
