#include "server/cli/standard_output.h"

#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

namespace dsa {
namespace {

int output_error = 0;

// All of it, or 0 and an error number.
ssize_t WriteWaiting(void* /*cookie*/, const char* data, std::size_t size) {
  std::size_t written = 0;
  while (written < size) {
    const ssize_t count = write(STDOUT_FILENO, data + written, size - written);
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
    } else if (errno == EAGAIN) {
      pollfd ready = {.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      output_error = output_error == 0 ? errno : output_error;
      return 0;
    }
  }
  return static_cast<ssize_t>(size);
}

// Opened the wrong way round: reading and writing it are errors, as with a closed descriptor.
void OpenIfClosed(int descriptor, int flags) {
  if (fcntl(descriptor, F_GETFD) < 0 && errno == EBADF) {
    const int opened = open("/dev/null", flags | O_CLOEXEC);
    static_cast<void>(opened);  // the least number that is free is this one
  }
}

}  // namespace

void TakeStandardStreams() {
  OpenIfClosed(STDIN_FILENO, O_WRONLY);
  OpenIfClosed(STDOUT_FILENO, O_RDONLY);
  OpenIfClosed(STDERR_FILENO, O_RDONLY);
  const cookie_io_functions_t functions = {
      .read = nullptr, .write = WriteWaiting, .seek = nullptr, .close = nullptr};
  std::FILE* const stream = fopencookie(nullptr, "w", functions);
  if (stream != nullptr) {
    std::setvbuf(stream, nullptr, isatty(STDOUT_FILENO) == 1 ? _IOLBF : _IOFBF, BUFSIZ);
    stdout = stream;
  }
}

int OutputError() {
  return output_error;
}

}  // namespace dsa
