// Cases that end the process: the test runs its own program again, for a hidden case alone.
#pragma once

#include <array>
#include <csignal>
#include <cstddef>
#include <string>

#include <catch2/catch.hpp>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsa::testing {

struct EndedProgram {
  int exit_code;  // 256 and the signal where one ended it
  std::string err;
};

// In a process that was just forked: this program again, for the hidden case of that tag alone.  It
// ends with its parent, and where the case takes too long it says so (tests/main.cpp).
[[noreturn]] inline void BecomeHiddenCase(const char* tag) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  execl("/proc/self/exe", "this_program", tag, "--case-limit-s", "100", nullptr);
  _exit(127);
}

inline int ExitCodeOf(int wait_status) {
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 256 + WTERMSIG(wait_status);
}

// This program again, for the hidden case of that tag.
inline EndedProgram RunThisProgram(const std::string& tag) {
  std::array<int, 2> pipe_ends{};
  REQUIRE(pipe(pipe_ends.data()) == 0);
  const pid_t child = fork();  // nothing but exec follows in the child
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    BecomeHiddenCase(tag.c_str());
  }
  close(pipe_ends[1]);
  EndedProgram ended{.exit_code = -1, .err = {}};
  std::array<char, 4096> bytes{};
  for (ssize_t count = 0; (count = read(pipe_ends[0], bytes.data(), bytes.size())) > 0;) {
    ended.err.append(bytes.data(), static_cast<std::size_t>(count));
  }
  close(pipe_ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  ended.exit_code = ExitCodeOf(status);
  return ended;
}

}  // namespace dsa::testing
