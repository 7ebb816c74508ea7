#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "memory.h"

namespace edgemem {

// How fast memory is: a buffer that threads read, or copy, as often as asked. Between two calls it holds the buffer and
// nothing else, for the threads end with the call, and what runs then has the processors for itself.
class Sweep {
 public:
  // Filled with other values than zero. Throws std::bad_alloc, std::invalid_argument, and, here as below,
  // std::system_error where there are no more threads to be had.
  Sweep(std::size_t bytes, int threads);

  std::size_t bytes() const { return buffer_.size() * sizeof(std::uint64_t); }

  // Seconds of each of `passes` passes: every thread reads its share of the buffer ...
  std::vector<double> read(int passes);
  // ... or copies one half of its share to the other: what is read and what is written make all bytes of the buffer.
  // x86-64 writes past the caches, or each line would be read before it is written; elsewhere it is the library's memcpy.
  std::vector<double> copy(int passes);

 private:
  template <typename Work>
  std::vector<double> timed(int passes, const Work& work);

  const int threads_;
  const std::size_t share_;  // words of each thread
  Buffer<std::uint64_t> buffer_;
  std::mutex mutex_;
};

}  // namespace edgemem
