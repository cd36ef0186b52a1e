// How a client's last bytes are met: those that came with its leaving, and those that it still
// sends behind an answer which refused them.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <sys/socket.h>

namespace dsa {

// Whether the client has closed its side and all that it sent was read.
inline bool HasLeft(int socket) {
  char next = 0;
  const ssize_t count = recv(socket, &next, 1, MSG_PEEK | MSG_DONTWAIT);
  return count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
}

// What is read and thrown away of a client behind its last answer.  A socket that is closed with
// bytes unread takes back what the client has not read yet, and most clients read nothing before
// they have sent their whole body.
class LastBytes final {
 public:
  static constexpr std::int64_t kSilentMsMax = 2'000;

  LastBytes(std::int64_t body_bytes_max, std::int64_t body_ms_max)
      : bytes_left_(std::max(kBytesMin, 2 * body_bytes_max)),
        periods_left_(std::max<std::int64_t>(1, body_ms_max / kSilentMsMax)) {}

  // `count` came; whether more is read.
  bool Take(std::size_t count) {
    silent_ = false;
    bytes_left_ -= static_cast<std::int64_t>(count);
    return bytes_left_ >= 0;
  }

  // kSilentMsMax have passed since the beginning or the last call; whether to wait for as long
  // again.
  bool GoesOn() {
    --periods_left_;
    return !std::exchange(silent_, true) && periods_left_ > 0;
  }

 private:
  static constexpr std::int64_t kBytesMin = std::int64_t{4} << 20;
  std::int64_t bytes_left_;
  std::int64_t periods_left_;
  bool silent_ = true;
};

}  // namespace dsa
