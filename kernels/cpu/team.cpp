#include "team.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edgemem {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void pin(std::thread& thread, int processor) {
#if defined(__linux__)
  if (processor < 0 || processor >= CPU_SETSIZE) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);  // a wish: without it the member runs anywhere
#else
  (void)thread, (void)processor;
#endif
}

int own_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

using Clock = std::chrono::steady_clock;

constexpr int kSpinsBeforeYield = 20000;  // in a barrier: about 300 microseconds
constexpr int kSpinsBeforeSleep = 4000;   // between runs: longer than sampling takes
// A larger share of the members' time says that fewer members, who need not wait, would be faster.
constexpr double kMostWaiting = 0.25;
constexpr double kMemory = 0.1;  // seconds of the past that the mean of it looks back to: one interruption does not count
constexpr double kLeastPatience = 0.5, kMostPatience = 4;  // seconds with fewer members before one more is tried

}  // namespace

Team::Team(int most_members, const std::vector<int>& processors)
    : most_(most_members), owner_(getpid()), processors_(processors), active_(most_members), patience_(kLeastPatience) {
  for (int member = 1; member < most_; ++member) threads_.emplace_back([this, member] { serve(member); });
}

Team::~Team() {
  stop_.store(true);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

bool Team::is_forked() const { return getpid() != owner_; }

Range Team::share(int count, int member, int unit) const {
  const long units = (count + unit - 1) / unit;
  const int begin = static_cast<int>(units * member / active_) * unit;
  const int end = static_cast<int>(units * (member + 1) / active_) * unit;
  return {std::min(begin, count), std::min(end, count)};
}

void Team::run(const std::function<void(int)>& job) {
  if (is_forked()) throw std::runtime_error("the threads of this engine stayed behind when the process forked");
  const auto start = Clock::now();
  if (active_ > 1) {
    make_room();
    job_ = &job;
    run_.store(((run_.load() >> 16) + 1) << 16 | static_cast<std::uint64_t>(active_));
    // A member that is about to sleep holds the lock from its last look at run_ until it waits.
    std::lock_guard<std::mutex> lock(mutex_);
    if (sleeping_ > 0) wake_.notify_all();
  }
  job(0);
  barrier();
  if (most_ > 1) adapt(std::chrono::duration<double>(Clock::now() - start).count());
}

// The caller runs where the system puts it, and the others keep out of its way: two that share a processor would wait for
// each other at every barrier.
void Team::make_room() {
  const int here = own_processor();
  if (here == caller_) return;
  caller_ = here;
  const bool listed = std::find(processors_.begin(), processors_.end(), here) != processors_.end();
  std::size_t next = listed ? 0 : 1;
  for (std::thread& thread : threads_) {
    if (next < processors_.size() && processors_[next] == here) ++next;
    if (next < processors_.size()) pin(thread, processors_[next++]);
  }
}

// After a run of so many seconds.
void Team::adapt(double seconds) {
  const double waited = static_cast<double>(waited_ns_.exchange(0)) * 1e-9 / (seconds * active_);
  const double past = std::exp(-seconds / kMemory);
  waiting_ = past * waiting_ + (1 - past) * waited;
  since_change_ += seconds;
  if (waiting_ > kMostWaiting && active_ > 1) {
    --active_;
    // After a long calm it is as if there had been none before.
    patience_ = since_change_ > 4 * patience_ ? 2 * kLeastPatience : std::min(2 * patience_, kMostPatience);
  } else if (active_ < most_ && since_change_ >= patience_) {
    ++active_;
  } else {
    return;
  }
  waiting_ = since_change_ = 0;
}

std::uint64_t Team::await_next(std::uint64_t seen) {
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    const std::uint64_t run = run_.load(std::memory_order_acquire);
    if (run != seen || stop_.load()) return run;
    relax();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleeping_;
  wake_.wait(lock, [&] { return stop_.load() || run_.load() != seen; });
  --sleeping_;
  return run_.load();
}

void Team::serve(int member) {
  for (std::uint64_t seen = 0;;) {
    seen = await_next(seen);
    if (stop_.load()) return;
    if (member >= static_cast<int>(seen & 0xFFFF)) continue;  // a run with fewer members
    (*job_)(member);
    barrier();
  }
}

void Team::barrier() {
  if (active_ == 1) return;
  const int round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == active_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; spins < kSpinsBeforeYield; ++spins) {
    if (round_.load(std::memory_order_acquire) != round) return;
    relax();
  }
  const auto start = Clock::now();
  while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
  waited_ns_.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
}

}  // namespace edgemem
