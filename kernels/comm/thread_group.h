// Ranks that are threads of one process and see each other's memory: what the collectives of the
// CPU meet in.
//
//   rank 0   ── Meet ─┐         ┌─ reads every rank's operands ─ Leave ─┐        ┌──
//   rank 1   ────── Meet ┐      ├─ reads every rank's operands ──── Leave ┐      ├──
//   rank 2   ──────────── Meet ─┘                            ... ─── Leave ──────┘
//
// Nobody reads before all have come, nobody goes on before all have read.  Waits block.  One group
// outlives the backends that are joined to it; each rank's calls come from one thread at a time.
//
// A group may have parts, of as many ranks each, next to each other, that meet by themselves too:
// the ranks of tensor parallelism within those that have sequences of their own.  What fails, fails
// all.
//
// Ranks that are GPUs meet on their devices (kernels/cuda/peers.h).  Their threads Meet before they
// queue a collective and read nothing, so none Leaves; what they record they Note, without waiting.
#pragma once

#include "common/view.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// What every rank must agree on.
struct CollectiveCall {
  std::string_view op;  // a constant
  std::int64_t rows;
  std::int64_t cols;
  DataType type;

  friend bool operator==(const CollectiveCall&, const CollectiveCall&) = default;
};

class ThreadGroup final {
 public:
  // `parts` divides `ranks`; 1: the group is its only part.
  explicit ThreadGroup(int ranks, int parts = 1);  // > 0
  ThreadGroup(const ThreadGroup&) = delete;
  ThreadGroup& operator=(const ThreadGroup&) = delete;

  int ranks() const { return static_cast<int>(params_.size()); }
  int parts() const { return parts_.empty() ? 1 : static_cast<int>(parts_.size()); }
  // The part that a rank is in, and its number there.
  struct PartSeat {
    ThreadGroup* group;
    int rank;
  };
  PartSeat PartOf(int rank);

  // Waits until every rank has come to this call.  `params` are this rank's parameters, which
  // others read until Leave.  False, at once and for good, where the group has failed: then nothing
  // may be read, and nothing that a collective would have written is to be believed.  Ranks that
  // come to different calls make the group fail.
  bool Meet(int rank, const CollectiveCall& call, const void* params);
  // The parameters of any rank; between Meet and Leave.
  template <typename Params>
  const Params& ParamsOf(int rank) const {
    return *static_cast<const Params*>(params_[static_cast<std::size_t>(rank)]);
  }
  // Waits until every rank has left.  After a Meet that was true.
  void Leave(int rank);

  // How long this rank has waited for others so far, in Meet and Leave.  Any thread.
  std::chrono::nanoseconds Waited(int rank) const;

  // This rank records the call.  Waits for nobody.  Where the ranks' calls differ in their order or
  // extents the group fails.
  void Note(int rank, const CollectiveCall& call);
  // What releases ranks that wait on their devices for one that will never come; called when the
  // group or a part of it fails, under a lock: it must not call the group.  Before the first Note.
  void OnFailure(std::function<void()> release);

  // Any thread.  Ends the group and its parts: whoever waits in Meet returns, and nobody waits
  // there again.  The first reason stays.
  void Fail(std::string_view reason);
  // Why the group, or a part of it, has failed; empty where it has not.  Any thread.
  std::string failure() const;
  // The ranks that have not come where others wait for them; none where nobody waits.  Any thread.
  std::vector<int> Absent() const;

 private:
  struct NotedCall {
    CollectiveCall call;
    int rank;  // that came to it first
  };

  template <typename Done>
  void WaitUntil(std::unique_lock<std::mutex>& lock, int rank, const Done& done);
  void AddAbsent(int first_rank, std::vector<int>& absent) const;
  void FailLocked(std::string_view reason);
  void FailOtherCall(int rank, const CollectiveCall& call, const NotedCall& first);
  NotedCall& NotedAt(std::int64_t index);

  std::vector<std::unique_ptr<ThreadGroup>> parts_;  // constant; none where there is one
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_; params_ are read without it between Meet and Leave, where nobody writes.
  std::vector<const void*> params_;
  std::vector<bool> arrived_;  // at the call at hand
  CollectiveCall call_{};
  int first_ = 0;           // the rank that came to it first
  std::int64_t meets_ = 0;  // of all ranks and calls; a call is complete at a multiple of the ranks
  std::int64_t leaves_ = 0;
  std::vector<std::chrono::nanoseconds> waited_;  // by rank
  std::vector<std::int64_t> noted_;               // calls that each rank has noted
  std::vector<NotedCall> calls_;  // of Note, call i at i % size; those that some rank has not made
  std::function<void()> release_;
  bool failed_ = false;
  std::string failure_;
};

}  // namespace dsa
