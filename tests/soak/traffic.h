// What clients do to a server over a long time: every kind of call, ended in every way.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace dsa::testing {

enum class CallKind : std::uint8_t {
  kUnary,
  kStream,
  kChat,
  kCancelled,
  kDeadline,
  kCut,        // the connection is gone in the middle
  kSlow,       // reads slower than the model writes
  kText,       // token service
  kLargeText,  // for a text worker
  kRefused,
  kOperator,   // health, load, abort
  kHandshake,  // half an HTTP/2 preface, or what is none
  kUnread,     // a stream that is left unread until the server drops it
};
inline constexpr std::size_t kCallKinds = 13;
std::string_view NameOf(CallKind kind);

// Counts of all clients.  Any thread.
class Tally final {
 public:
  void Add(CallKind kind, const std::string& unexpected);  // empty: as it should be
  std::array<std::int64_t, kCallKinds> counts() const;
  // Calls that did not end as they should; the first few are printed as they end.
  std::int64_t unexpected_count() const;

 private:
  mutable std::mutex mutex_;
  std::array<std::int64_t, kCallKinds> counts_{};
  std::int64_t unexpected_count_ = 0;
};

// Makes one call after another on the calling thread until `end`: calls begin after random pauses
// of this mean.  `kinds` are drawn from.
struct ClientOptions {
  std::string address;  // 127.0.0.1:PORT
  std::uint64_t seed;
  std::chrono::microseconds mean_pause;
  std::chrono::steady_clock::time_point end;
  std::vector<CallKind> kinds;
};
void RunClient(const ClientOptions& options, Tally& tally);

// Nothing waits, nothing runs, no block is held.  Asked until it is so, at most 20 s.
bool BecomesIdle(const std::string& address);

}  // namespace dsa::testing
