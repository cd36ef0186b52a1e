#include "tests/abuse/raw_http2.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

namespace dsa::testing {
namespace {

constexpr std::size_t kFrameHeaderBytes = 9;

std::uint32_t ReadBigEndian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char byte : bytes) {
    value = value << 8 | static_cast<std::uint8_t>(byte);
  }
  return value;
}

std::string ShortText(std::string_view text) {  // of less than 127 bytes
  return static_cast<char>(text.size()) + std::string(text);
}

}  // namespace

std::string Frame(RawFrameType type, std::uint8_t flags, std::uint32_t stream,
                  std::string_view payload) {
  const auto size = static_cast<std::uint32_t>(payload.size());
  std::string frame;
  frame.reserve(kFrameHeaderBytes + payload.size());
  for (const std::uint32_t byte :
       {size >> 16, size >> 8, size, std::uint32_t{type}, std::uint32_t{flags}, stream >> 24,
        stream >> 16, stream >> 8, stream}) {
    frame.push_back(static_cast<char>(byte & 0xff));
  }
  frame += payload;
  return frame;
}

std::string ClientPreface() {
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettingsFrame, 0, 0, "");
}

std::string LiteralHeader(std::string_view name, std::string_view value) {
  return '\0' + ShortText(name) + ShortText(value);
}

std::string RequestHeaders(std::string_view path) {
  constexpr char kPostHttp[] = "\x83\x86";
  constexpr char kPath = 4;
  constexpr char kAuthority = 1;
  return kPostHttp + std::string(1, kPath) + ShortText(path) + std::string(1, kAuthority) +
         ShortText("localhost") + LiteralHeader("content-type", "application/grpc") +
         LiteralHeader("te", "trailers");
}

RawConnection::RawConnection(std::int64_t port)
    : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const auto* raw = reinterpret_cast<const sockaddr*>(&address);
  ended_ = connect(socket_.number(), raw, sizeof(address)) != 0 ||
           fcntl(socket_.number(), F_SETFL, O_NONBLOCK) != 0;
  const int on = 1;  // as every client of HTTP/2 has it
  setsockopt(socket_.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

void RawConnection::Follow(std::string_view bytes) {
  partial_ += bytes;
  std::size_t begin = 0;
  while (partial_.size() - begin >= kFrameHeaderBytes) {
    const std::string_view frame = std::string_view(partial_).substr(begin);
    const std::size_t size = kFrameHeaderBytes + ReadBigEndian(frame.substr(0, 3));
    if (frame.size() < size) {
      break;
    }
    const auto type = static_cast<std::uint8_t>(frame[3]);
    ++frames_[type];
    if (type == kGoAwayFrame) {
      go_away_code_ = ReadBigEndian(frame.substr(kFrameHeaderBytes + 4, 4));
    }
    if (on_frame) {
      on_frame(static_cast<RawFrameType>(type), static_cast<std::uint8_t>(frame[4]),
               ReadBigEndian(frame.substr(5, 4)));
    }
    begin += size;
  }
  partial_.erase(0, begin);
}

void RawConnection::ReadAvailable() {
  std::array<char, 16 << 10> bytes;
  while (!ended_) {
    const ssize_t got = recv(socket_.number(), bytes.data(), bytes.size(), 0);
    if (got > 0) {
      Follow({bytes.data(), static_cast<std::size_t>(got)});
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      ended_ = true;
    } else if (errno == EAGAIN) {
      return;
    }
  }
}

bool RawConnection::Send(std::string_view bytes, int stall_ms_max) {
  while (!ended_ && !bytes.empty()) {
    const ssize_t sent = send(socket_.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(sent));
      bytes_sent_ += sent;
      ReadAvailable();
      continue;
    }
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
      ReadAvailable();  // what was said before the end
      ended_ = true;
      return false;
    }
    pollfd ready = {.fd = socket_.number(), .events = POLLIN | POLLOUT, .revents = 0};
    if (poll(&ready, 1, stall_ms_max) <= 0) {
      return false;
    }
    ReadAvailable();
  }
  return !ended_;
}

bool RawConnection::Offer(std::string_view bytes) {
  offered_ += bytes;
  while (!ended_ && !offered_.empty()) {
    const ssize_t sent = send(socket_.number(), offered_.data(), offered_.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      ended_ = errno != EAGAIN && errno != EINTR;
      break;
    }
    offered_.erase(0, static_cast<std::size_t>(sent));
    bytes_sent_ += sent;
  }
  ReadAvailable();
  return offered_.empty();
}

void RawConnection::ReadFor(int ms) {
  using Clock = std::chrono::steady_clock;
  const auto limit = Clock::now() + std::chrono::milliseconds(ms);
  while (!ended_) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(limit - Clock::now()).count();
    pollfd ready = {.fd = socket_.number(), .events = POLLIN, .revents = 0};
    if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) <= 0) {
      return;
    }
    ReadAvailable();
  }
}

}  // namespace dsa::testing
