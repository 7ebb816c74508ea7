#pragma once
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace edgemem {

struct Range {
  int begin, end;
};

// A fixed team of threads. Inside run() every member executes the job and meets the others at barrier(); between runs
// the members spin for a moment, in case another run follows, and then sleep. The caller is member 0.
// Where other programs take the processors, members wait for one that is not running, and fewer are faster: then runs
// are made with fewer, and with all again when it is calm. Jobs must not throw. One run at a time.
class Team {
 public:
  // Members 1.. are pinned to processors of these numbers, one each and none to the caller's, where there are enough.
  Team(int most_members, const std::vector<int>& processors);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int most_members() const { return most_; }
  int members() const { return active_; }  // of the run under way: 1 to most_members

  // Throws std::runtime_error in a forked child, where the members do not exist.
  void run(const std::function<void(int member)>& job);
  void barrier();

  // A member's share of `count` things, in whole units but for the last.
  Range share(int count, int member, int unit = 1) const;

  // In a forked child neither threads nor locks are in a state that could be cleaned up.
  bool is_forked() const;

 private:
  void serve(int member);
  std::uint64_t await_next(std::uint64_t seen);
  void make_room();
  void adapt(double seconds);

  const int most_;
  const pid_t owner_;
  const std::vector<int> processors_;
  int caller_ = -2;  // where it last ran
  int active_;
  const std::function<void(int)>* job_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  int sleeping_ = 0;
  alignas(64) std::atomic<std::uint64_t> run_{0};  // its number, and in the lower 16 bits its members
  alignas(64) std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
  std::atomic<std::int64_t> waited_ns_{0};  // by all members of a run, beyond a short wait
  double waiting_ = 0;                      // share of the members' time, a running mean
  double since_change_ = 0, patience_;      // seconds of runs
  std::vector<std::thread> threads_;
};

struct LeaveForked {
  void operator()(Team* team) const {
    if (!team->is_forked()) delete team;
  }
};
using OwnedTeam = std::unique_ptr<Team, LeaveForked>;

}  // namespace edgemem
