#include "sweep.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edgemem {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLine = 64;

using Words = std::uint64_t;

constexpr std::size_t kAheadWords = 512;  // 4 KiB: one thread reads half as much again as by the hardware's own fetching

// Eight independent sums keep eight loads in flight; the compiler turns them into the widest vectors of each clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
Words sum_words(const Words* data, std::size_t count) {
  Words sums[64] = {};
  for (std::size_t i = 0; i + 64 <= count; i += 64) {
    for (int line = 0; line < 64; line += 8) __builtin_prefetch(data + i + kAheadWords + line);
    for (int lane = 0; lane < 64; ++lane) sums[lane] += data[i + lane];
  }
  Words total = 0;
  for (Words sum : sums) total += sum;
  return total;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Every thread arrives, then all go on. Spins: a sleep would be part of the measurement.
class SpinBarrier {
 public:
  explicit SpinBarrier(int parties) : parties_(parties) {}
  void wait() {
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      if (spins > 10000) std::this_thread::yield();
  }

 private:
  const int parties_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

}  // namespace

std::vector<double> read_sweep(std::size_t bytes, int threads, int repeats) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
  if (repeats < 1 || repeats > 100000) throw std::invalid_argument("repeats must be 1 to 100000");
  const std::size_t slice = bytes / static_cast<std::size_t>(threads) / (8 * kLine) * (8 * kLine);
  if (slice == 0) throw std::invalid_argument("the buffer is smaller than 512 bytes a thread");
  const std::size_t used = slice * static_cast<std::size_t>(threads);

  const std::size_t rounded = (used + kHugePage - 1) / kHugePage * kHugePage;
  std::unique_ptr<void, Free> memory(std::aligned_alloc(kHugePage, rounded));
  if (!memory) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory.get(), rounded, MADV_HUGEPAGE);  // fewer TLB misses; without huge pages it still measures
#endif
  auto* data = static_cast<Words*>(memory.get());

  SpinBarrier barrier(threads);
  std::vector<double> seconds(static_cast<std::size_t>(repeats));
  std::atomic<Words> sink{0};
  auto work = [&](int index) {
    Words* mine = data + static_cast<std::size_t>(index) * (slice / sizeof(Words));
    const std::size_t count = slice / sizeof(Words);
    for (std::size_t i = 0; i < count; ++i) mine[i] = i * 0x9E3779B97F4A7C15ULL + 1;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      barrier.wait();
      const auto start = std::chrono::steady_clock::now();
      sink.fetch_add(sum_words(mine, count), std::memory_order_relaxed);
      barrier.wait();
      if (index == 0)
        seconds[static_cast<std::size_t>(repeat)] =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  };

  std::vector<std::thread> team;
  for (int index = 1; index < threads; ++index) team.emplace_back(work, index);
  work(0);
  for (std::thread& member : team) member.join();
  return seconds;
}

}  // namespace edgemem
