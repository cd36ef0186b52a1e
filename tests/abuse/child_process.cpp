#include "tests/abuse/child_process.h"

#include "common/check.h"
#include "tests/process_usage.h"

#include <array>
#include <csignal>
#include <fstream>
#include <sstream>
#include <vector>

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace dsa::testing {

ChildProcess::ChildProcess(const std::string& arguments) {
  std::array<int, 2> input{};
  std::array<int, 2> output{};
  DSA_CHECK(pipe2(input.data(), O_CLOEXEC) == 0 && pipe2(output.data(), O_CLOEXEC) == 0,
            "no pipes");
  std::vector<std::string> words = {"/proc/self/exe"};
  std::istringstream text(arguments);
  for (std::string word; text >> word;) {
    words.push_back(word);
  }
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output[1], STDOUT_FILENO);
  const int error = posix_spawn(&pid_, pointers[0], &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  DSA_CHECK(error == 0, "posix_spawn: {}", error);
  close(input[0]);
  close(output[1]);
  in_ = input[1];
  std::string line;
  for (char byte = 0; read(output[0], &byte, 1) == 1 && byte != '\n';) {
    line.push_back(byte);
  }
  close(output[0]);
  DSA_CHECK(line.starts_with("port "), "{} said {}", arguments, line);
  port_ = std::stoll(line.substr(5));
}

ChildProcess::~ChildProcess() {
  close(in_);
  waitpid(pid_, nullptr, 0);
}

bool ChildProcess::Lives() const {
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

std::int64_t ChildProcess::ResidentBytes() const {
  return ProcessStatus(pid_, "VmRSS");
}

std::int64_t ChildProcess::PeakBytes() const {
  return ProcessStatus(pid_, "VmHWM");
}

void ChildProcess::ResetPeak() const {
  constexpr char kPeak[] = "5";
  std::ofstream(fmt::format("/proc/{}/clear_refs", pid_)) << kPeak;
}

std::int64_t ChildProcess::ProcessorUs() const {
  return testing::ProcessorUs(pid_);
}

void SayPort(std::int64_t port) {
  const std::string line = fmt::format("port {}\n", port);
  DSA_CHECK(write(STDOUT_FILENO, line.data(), line.size()) > 0, "nobody reads the port");
}

void WaitForEndOfInput() {
  std::array<char, 64> bytes{};
  while (read(STDIN_FILENO, bytes.data(), bytes.size()) > 0) {
  }
}

}  // namespace dsa::testing
