#include "common/last_line.h"

#include <poll.h>
#include <unistd.h>

namespace dsa {

void WriteLastLine(std::string_view line) {
  constexpr int kWaitMs = 1000;
  pollfd ready = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  // Room for one line of up to PIPE_BUF bytes is what a pipe promises where it can be written.
  if (poll(&ready, 1, kWaitMs) == 1 && (ready.revents & POLLOUT) != 0) {
    const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
    static_cast<void>(written);  // there is nobody left to tell
  }
}

}  // namespace dsa
