#include "tests/e2e/process.h"

#include "common/check.h"
#include "tests/paths.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace dsa::testing {
namespace {

constexpr auto kLimit = std::chrono::seconds(100);  // something hangs; a busy machine is slow

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    DSA_CHECK(pipe2(ends.data(), O_CLOEXEC) == 0, "pipe: errno {}", errno);
    read = ends[0];
    write = ends[1];
  }
  int read;
  int write;
};

void CloseEnd(int& end) {
  if (end >= 0) {
    close(end);
    end = -1;
  }
}

// Appends what can be read now.  Closes the end where nothing more can come.
void Drain(int& end, std::string& text) {
  std::array<char, 4096> bytes{};
  const ssize_t count = read(end, bytes.data(), bytes.size());
  if (count > 0) {
    text.append(bytes.data(), static_cast<std::size_t>(count));
  } else if (count == 0 || (errno != EINTR && errno != EAGAIN)) {
    CloseEnd(end);  // a terminal whose process is gone says EIO
  }
}

}  // namespace

Process::Process(const std::string& preparation, const Arguments& arguments) {
  Arguments words = {"/bin/sh", "-c", preparation + R"(; exec "$@")", "sh",
                     testing::BuildPath("dsa")};
  words.insert(words.end(), arguments.begin(), arguments.end());
  StartOnPipes(words, Streams::kPipes);
}

Process::Process(const Arguments& arguments, Streams streams) {
  Arguments words = {testing::BuildPath("dsa")};
  words.insert(words.end(), arguments.begin(), arguments.end());
  if (streams != Streams::kTerminal) {
    StartOnPipes(words, streams);
    return;
  }
  int main_end = -1;
  int terminal_end = -1;
  std::array<char, 128> name{};
  DSA_CHECK(openpty(&main_end, &terminal_end, name.data(), nullptr, nullptr) == 0,
            "openpty: errno {}", errno);
  fcntl(main_end, F_SETFD, FD_CLOEXEC);
  fcntl(terminal_end, F_SETFD, FD_CLOEXEC);
  Start(words, {-1, -1, -1}, name.data());
  CloseEnd(terminal_end);
  out_end_ = main_end;
  in_ = fcntl(main_end, F_DUPFD_CLOEXEC, 0);
  fcntl(in_, F_SETFL, O_RDWR | O_NONBLOCK);
}

Process::~Process() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  CloseEnd(in_);
  CloseEnd(out_end_);
  CloseEnd(err_end_);
}

void Process::StartOnPipes(const Arguments& words, Streams streams) {
  signal(SIGPIPE, SIG_IGN);  // a process that ends early must not end the test
  Pipe in;
  Pipe out;
  Pipe err;
  if (streams == Streams::kBroken) {
    CloseEnd(in.read);
    CloseEnd(out.write);
    in.read = open("/", O_RDONLY | O_CLOEXEC);
    out.write = open("/dev/full", O_WRONLY | O_CLOEXEC);
  } else if (streams == Streams::kShared) {
    fcntl(out.write, F_SETFL, O_WRONLY | O_NONBLOCK);
  }
  Start(words, {in.read, out.write, err.write}, nullptr);
  CloseEnd(in.read);
  CloseEnd(out.write);
  CloseEnd(err.write);
  in_ = in.write;
  fcntl(in_, F_SETFL, O_WRONLY | O_NONBLOCK);
  out_end_ = out.read;
  err_end_ = err.read;
}

void Process::Start(Arguments words, const int (&child_ends)[3], const char* terminal) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  for (int target = 0; target < 3; ++target) {
    if (terminal == nullptr) {
      posix_spawn_file_actions_adddup2(&actions, child_ends[target], target);
    } else {
      // The first terminal that the leader of a session opens becomes its controlling terminal.
      posix_spawn_file_actions_addopen(&actions, target, terminal, O_RDWR, 0);
    }
  }
  const int error =
      posix_spawn(&pid_, words[0].c_str(), &actions, &attributes, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  DSA_CHECK(error == 0, "{} cannot be run: errno {}", words[0], error);
}

void Process::Write(const std::string& text) const {
  std::size_t written = 0;
  while (written < text.size()) {
    pollfd ready = {.fd = in_, .events = POLLOUT, .revents = 0};
    if (poll(&ready, 1, static_cast<int>(std::chrono::milliseconds(kLimit).count())) <= 0) {
      return;  // it reads nothing
    }
    const ssize_t count = write(in_, text.data() + written, text.size() - written);
    if (count < 0 && errno != EAGAIN) {
      return;  // it ended
    }
    written += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
  }
}

void Process::CloseInput() {
  CloseEnd(in_);
}

void Process::Signal(int signal) const {
  kill(pid_, signal);
}

bool Process::ReadMore(Clock::time_point limit) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(limit - Clock::now()).count();
  if (left <= 0 || (out_end_ < 0 && err_end_ < 0)) {
    return false;
  }
  std::array<pollfd, 2> ends = {pollfd{.fd = out_end_, .events = POLLIN, .revents = 0},
                                pollfd{.fd = err_end_, .events = POLLIN, .revents = 0}};
  if (poll(ends.data(), ends.size(), static_cast<int>(left)) <= 0) {
    return false;
  }
  if (ends[0].revents != 0) {
    Drain(out_end_, out_);
  }
  if (ends[1].revents != 0) {
    Drain(err_end_, err_);
  }
  return true;
}

bool Process::WaitForOut(const std::string& text, std::size_t from) {
  const auto limit = Clock::now() + kLimit;
  while (out_.find(text, from) == std::string::npos) {
    if (!ReadMore(limit)) {
      return false;
    }
  }
  return true;
}

bool Process::WaitForErr(const std::string& text) {
  const auto limit = Clock::now() + kLimit;
  while (err_.find(text) == std::string::npos) {
    if (!ReadMore(limit)) {
      return false;
    }
  }
  return true;
}

Ended Process::Wait() {
  const auto limit = Clock::now() + kLimit;
  while (ReadMore(limit)) {
  }
  Ended ended;
  ended.exit_code = WaitForExit(limit);
  ended.out = out_;
  ended.err = err_;
  return ended;
}

int Process::WaitUnread() {
  return WaitForExit(Clock::now() + kLimit);
}

int Process::WaitForExit(Clock::time_point limit) {
  constexpr int kLookAgainMs = 2;
  int status = 0;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (Clock::now() > limit) {
      kill(pid_, SIGKILL);
    }
    poll(nullptr, 0, kLookAgainMs);
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void Process::CloseOut() {
  CloseEnd(out_end_);
}

void Process::CloseErr() {
  CloseEnd(err_end_);
}

Ended RunDsa(const Arguments& arguments, const std::string& input) {
  Process process(arguments, Streams::kPipes);
  process.Write(input);
  process.CloseInput();
  return process.Wait();
}

}  // namespace dsa::testing
