// HTTP/2 as somebody writes it who wants to harm: frames by hand over a socket, without flow
// control or state.  One thread each.
#pragma once

#include "common/descriptor.h"

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace dsa::testing {

enum RawFrameType : std::uint8_t {
  kDataFrame = 0,
  kHeadersFrame = 1,
  kPriorityFrame = 2,
  kResetFrame = 3,
  kSettingsFrame = 4,
  kPingFrame = 6,
  kGoAwayFrame = 7,
  kWindowUpdateFrame = 8,
  kContinuationFrame = 9,
};
inline constexpr std::uint8_t kEndStreamFlag = 1;
inline constexpr std::uint8_t kAckFlag = 1;
inline constexpr std::uint8_t kEndHeadersFlag = 4;

std::string Frame(RawFrameType type, std::uint8_t flags, std::uint32_t stream,
                  std::string_view payload);

// "PRI * HTTP/2.0 ..." and empty settings.
std::string ClientPreface();

// The header block of a call of `path`, for instance "/dsa.v1.AdminService/GetLoad", without
// references to earlier ones.
std::string RequestHeaders(std::string_view path);

// One header as a literal that no table keeps.
std::string LiteralHeader(std::string_view name, std::string_view value);

// A connection that reads and drops what comes, but for what it wants to know.
class RawConnection final {
 public:
  explicit RawConnection(std::int64_t port);  // of loopback

  bool ended() const { return ended_; }  // by the server, or never opened
  // The error code of the server's GOAWAY, once it has come.
  std::optional<std::uint32_t> go_away_code() const { return go_away_code_; }
  std::int64_t frames(RawFrameType type) const { return frames_[type]; }
  std::int64_t bytes_sent() const { return bytes_sent_; }

  // Waits until all is sent; false where the connection ended or took nothing for `stall_ms_max`.
  bool Send(std::string_view bytes, int stall_ms_max = 10'000);
  // Sends what goes at once, and first what was left of the last offer; false where some is left.
  bool Offer(std::string_view bytes);
  bool offers_wait() const { return !offered_.empty(); }
  // Reads what comes until the connection ends or so much time has passed.
  void ReadFor(int ms);
  int socket() const { return socket_.number(); }

  // Called for each frame that has come; sends nothing by itself.
  std::function<void(RawFrameType type, std::uint8_t flags, std::uint32_t stream)> on_frame;

 private:
  void ReadAvailable();
  void Follow(std::string_view bytes);

  Descriptor socket_;
  bool ended_ = false;
  std::int64_t bytes_sent_ = 0;
  std::optional<std::uint32_t> go_away_code_;
  std::array<std::int64_t, 256> frames_{};
  std::string offered_;
  std::string partial_;  // a frame that has not come whole
};

}  // namespace dsa::testing
