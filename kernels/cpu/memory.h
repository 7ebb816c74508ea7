#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edgemem {

// Zeros that begin at a cache line, or at a huge page where those are asked for. Large blocks come from the system
// untouched: memory is taken page by page as it is first written.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t count, bool huge_pages = false) : size_(count) {
    const std::size_t alignment = huge_pages ? std::size_t{2} << 20 : 64;
    if (count > (PTRDIFF_MAX - alignment) / sizeof(T)) throw std::bad_alloc();
    block_ = std::calloc(count * sizeof(T) + alignment, 1);
    if (block_ == nullptr) throw std::bad_alloc();
    const auto start = (reinterpret_cast<std::uintptr_t>(block_) + alignment - 1) / alignment * alignment;
    data_ = reinterpret_cast<T*>(start);
#if defined(__linux__)
    if (huge_pages) madvise(data_, count * sizeof(T), MADV_HUGEPAGE);  // fewer TLB misses; it is only a wish
#endif
  }
  ~Buffer() { std::free(block_); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  void* block_ = nullptr;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

using Floats = Buffer<float>;

constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Products of dimensions, each below 2**31, without overflow of int.
constexpr std::size_t size(int a, int b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); }

}  // namespace edgemem
