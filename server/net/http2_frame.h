// What every HTTP/2 frame begins with (RFC 9113, section 4.1).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dsa {

inline constexpr std::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
inline constexpr std::size_t kFrameHeaderBytes = 9;

enum class FrameType : std::uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kRstStream = 3,
  kSettings = 4,
  kPushPromise = 5,
  kPing = 6,
  kGoAway = 7,
  kWindowUpdate = 8,
  kContinuation = 9,
};

struct FrameHeader {
  std::uint32_t payload_bytes = 0;
  FrameType type{};  // may be one that has no name
  std::uint8_t flags = 0;
  std::uint32_t stream = 0;

  bool end_stream() const { return (flags & 0x1) != 0; }  // of DATA and HEADERS
  bool ack() const { return (flags & 0x1) != 0; }         // of SETTINGS and PING
  bool end_headers() const { return (flags & 0x4) != 0; }
  bool padded() const { return (flags & 0x8) != 0; }
  bool has_priority() const { return (flags & 0x20) != 0; }
};

// Of the first kFrameHeaderBytes of `bytes`.
FrameHeader ReadFrameHeader(std::string_view bytes);

// A GOAWAY frame that says ENHANCE_YOUR_CALM and why.
std::string CalmDownFrame(std::uint32_t last_stream, std::string_view reason);

}  // namespace dsa
