// The external ids of live requests: given by clients or made here, unique while live.
// Thread-safe.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

namespace dsa {

inline constexpr std::size_t kRequestIdBytesMax = 64;

// 1 to kRequestIdBytesMax of A-Z a-z 0-9 . _ -, so that it may go into headers and logs as it is.
bool IsRequestId(std::string_view text);

class RequestIds final {
 public:
  RequestIds();

  // Claims `wanted`, or a fresh id where it is empty.  INVALID_ARGUMENT naming `field` for an id
  // that is too long or has other characters than A-Z a-z 0-9 . _ -; ALREADY_EXISTS for a live one.
  Result<std::string> Claim(std::string_view wanted, std::string_view field);

  // Claims `proposed` where it is an id and free, otherwise a fresh one: for a name that a client
  // or a proxy gave in passing, which binds nobody.
  std::string ClaimProposed(std::string_view proposed);

  // Gives a claimed id back.
  void Release(const std::string& id);

 private:
  std::string MakeId();  // mutex_ held

  const std::uint64_t nonce_;  // of this process, so that ids of two servers differ
  std::mutex mutex_;
  std::set<std::string, std::less<>> live_;  // guarded by mutex_
  std::uint64_t made_ = 0;                   // guarded by mutex_
};

// A client's text for a log line or a message: printable ASCII, the rest as \xNN, at most
// `bytes_max` bytes.
std::string Escape(std::string_view text, std::size_t bytes_max);

}  // namespace dsa
