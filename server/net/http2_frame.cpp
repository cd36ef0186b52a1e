#include "server/net/http2_frame.h"

namespace dsa {
namespace {

std::uint32_t ReadBigEndian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char byte : bytes) {
    value = value << 8 | static_cast<std::uint8_t>(byte);
  }
  return value;
}

void AppendBigEndian(std::string& bytes, std::uint32_t value, int size) {
  for (int shift = 8 * (size - 1); shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<char>(value >> shift & 0xff));
  }
}

}  // namespace

FrameHeader ReadFrameHeader(std::string_view bytes) {
  constexpr std::uint32_t kStreamMask = 0x7fffffff;
  return {.payload_bytes = ReadBigEndian(bytes.substr(0, 3)),
          .type = static_cast<FrameType>(bytes[3]),
          .flags = static_cast<std::uint8_t>(bytes[4]),
          .stream = ReadBigEndian(bytes.substr(5, 4)) & kStreamMask};
}

std::string CalmDownFrame(std::uint32_t last_stream, std::string_view reason) {
  constexpr std::uint32_t kEnhanceYourCalm = 11;
  constexpr std::size_t kFixedBytes = 8;
  std::string frame;
  AppendBigEndian(frame, static_cast<std::uint32_t>(kFixedBytes + reason.size()), 3);
  AppendBigEndian(frame, static_cast<std::uint32_t>(FrameType::kGoAway), 1);
  AppendBigEndian(frame, 0, 1);  // flags
  AppendBigEndian(frame, 0, 4);  // the connection's stream
  AppendBigEndian(frame, last_stream, 4);
  AppendBigEndian(frame, kEnhanceYourCalm, 4);
  frame += reason;
  return frame;
}

}  // namespace dsa
