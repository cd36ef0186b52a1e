// The external ids of requests: given by clients or made here.  That two live requests never have
// the same one is the engine's to see to (Engine::Submit).  Thread-safe.
#pragma once

#include "common/status.h"

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace dsa {

inline constexpr std::size_t kRequestIdBytesMax = 128;

// The request's id: taken from the client where its message names none and it is free and of our
// form, and echoed.
inline constexpr const char* kRequestIdHeader = "x-request-id";

// The most bytes of a client's string that a log line holds.
inline constexpr std::size_t kLoggedBytesMax = 128;

// 1 to kRequestIdBytesMax of A-Z a-z 0-9 . _ -, so that it may go into headers and logs as it is.
bool IsRequestId(std::string_view text);

// INVALID_ARGUMENT naming `field` for what is no request id.
Status CheckRequestId(std::string_view text, std::string_view field);

// The id of a server from its start to its end: 32 hexadecimal digits, drawn.
std::string MakeInstanceId();

class RequestIds final {
 public:
  RequestIds();

  // One that no other server makes, and this one never again.
  std::string Make();

 private:
  const std::uint64_t nonce_;  // of this process, so that ids of two servers differ
  std::atomic<std::uint64_t> made_{0};
};

// A client's text for a log line or a message: printable ASCII, the rest as \xNN, at most
// `bytes_max` bytes.
std::string Escape(std::string_view text, std::size_t bytes_max);

}  // namespace dsa
