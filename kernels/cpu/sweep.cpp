#include "sweep.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <stdexcept>
#include <thread>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace edgemem {
namespace {

using Words = std::uint64_t;

constexpr std::size_t kLineWords = 64 / sizeof(Words);
constexpr std::size_t kUnitWords = 8 * kLineWords;  // a share is made of whole units: 512 bytes
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

void copy_words(const Words* from, Words* to, std::size_t count) {
#if defined(__SSE2__)
  for (std::size_t i = 0; i < count; i += kLineWords) {
    __builtin_prefetch(from + i + kAheadWords);
    for (std::size_t word = i; word < i + kLineWords; word += 2)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + word), _mm_load_si128(reinterpret_cast<const __m128i*>(from + word)));
  }
  _mm_sfence();
#else
  std::memcpy(to, from, count * sizeof(Words));
#endif
}

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

// work(0) here and the others in threads of their own; none of it where not all of them can be had.
template <typename Work>
void in_threads(int threads, const Work& work) {
  std::promise<bool> complete;
  const std::shared_future<bool> begins = complete.get_future().share();
  std::vector<std::thread> team;
  const auto join = [&team] {
    for (std::thread& member : team) member.join();
  };
  try {
    for (int index = 1; index < threads; ++index)
      team.emplace_back([&work, begins, index] {
        if (begins.get()) work(index);
      });
  } catch (...) {
    complete.set_value(false);
    join();
    throw;
  }
  complete.set_value(true);
  work(0);
  join();
}

std::size_t share_of(std::size_t bytes, int threads) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
  const std::size_t share = bytes / sizeof(Words) / static_cast<std::size_t>(threads) / kUnitWords * kUnitWords;
  if (share == 0) throw std::invalid_argument("the buffer is smaller than 512 bytes a thread");
  return share;
}

}  // namespace

Sweep::Sweep(std::size_t bytes, int threads)
    : threads_(threads), share_(share_of(bytes, threads)), buffer_(share_ * static_cast<std::size_t>(threads), true) {
  in_threads(threads_, [this](int index) {
    Words* mine = buffer_.data() + static_cast<std::size_t>(index) * share_;
    for (std::size_t i = 0; i < share_; ++i) mine[i] = i * 0x9E3779B97F4A7C15ULL + 1;
  });
}

std::vector<double> Sweep::read(int passes) {
  std::atomic<Words> sink{0};
  return timed(passes, [&](Words* mine) { sink.fetch_add(sum_words(mine, share_), std::memory_order_relaxed); });
}

std::vector<double> Sweep::copy(int passes) {
  return timed(passes, [&](Words* mine) { copy_words(mine, mine + share_ / 2, share_ / 2); });
}

template <typename Work>
std::vector<double> Sweep::timed(int passes, const Work& work) {
  if (passes < 1 || passes > 100000) throw std::invalid_argument("passes must be 1 to 100000");
  const std::lock_guard<std::mutex> alone(mutex_);
  SpinBarrier barrier(threads_);
  std::vector<double> seconds(static_cast<std::size_t>(passes));
  in_threads(threads_, [&](int index) {
    Words* mine = buffer_.data() + static_cast<std::size_t>(index) * share_;
    for (double& pass : seconds) {
      barrier.wait();
      const auto start = std::chrono::steady_clock::now();
      work(mine);
      barrier.wait();
      if (index == 0) pass = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  });
  return seconds;
}

}  // namespace edgemem
