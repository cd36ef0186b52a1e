// Streams that are open, and those that were given up lately, of one connection and of all: a
// stream that its client gave up goes on costing memory until gRPC has cleared it away, which it
// does not report, so such a one counts for a while longer.  The acceptor's thread.
#pragma once

#include "common/clock.h"
#include "server/net/token_bucket.h"

#include <cstdint>

namespace dsa {

// How fast gRPC is trusted to clear away: a tenth of what it was measured to do on one core.
inline constexpr double kClearedPerSecond = 500;
// What such a one counts for beside an open one: an open stream takes 12 KB, and up to 45 KB each
// were measured while many are cleared away and others begin on new connections.
inline constexpr double kGivenUpStreams = 4;

class StreamBudget final {
 public:
  explicit StreamBudget(std::int64_t streams_max) : streams_max_(streams_max) {}

  // One connection's part.
  class Share final {
   public:
    explicit Share(StreamBudget& budget) : budget_(budget) {}
    ~Share() = default;
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // Never more than the connection's own limit, and otherwise at most twice what is left for
    // everybody, so that something is left for whoever comes; one always, unless as many as all may
    // have were given up lately, which bounds what many connections make gRPC do.
    bool MayOpen(std::int64_t own_max, MonotonicUs now_us) const {
      const auto all_max = static_cast<double>(budget_.streams_max_);
      const double own = static_cast<double>(open_) + given_up_.At(now_us);
      const double given_up = budget_.given_up_.At(now_us);
      const double left = all_max - static_cast<double>(budget_.open_) - kGivenUpStreams * given_up;
      const bool may_have_one = own < 1 && given_up < all_max;
      return may_have_one || (own < static_cast<double>(own_max) && own < 2 * left);
    }
    void Open() { ++open_, ++budget_.open_; }
    void Close() { --open_, --budget_.open_; }
    void GiveUp(std::int64_t streams, MonotonicUs now_us) {
      open_ -= streams;
      budget_.open_ -= streams;
      given_up_.Add(static_cast<double>(streams), now_us);
      budget_.given_up_.Add(static_cast<double>(streams), now_us);
    }
    std::int64_t open() const { return open_; }

   private:
    StreamBudget& budget_;
    std::int64_t open_ = 0;
    SinkingLevel given_up_{kClearedPerSecond};
  };

  std::int64_t open() const { return open_; }

 private:
  const std::int64_t streams_max_;
  std::int64_t open_ = 0;
  SinkingLevel given_up_{kClearedPerSecond};
};

}  // namespace dsa
