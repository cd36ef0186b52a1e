#include "tests/process_usage.h"

#include "common/machine.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include <fmt/core.h>
#include <unistd.h>

namespace dsa::testing {
namespace {

std::string ReadOf(pid_t process, std::string_view file) {
  std::ifstream stream(fmt::format("/proc/{}/{}", process, file));
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

}  // namespace

std::int64_t ProcessStatus(pid_t process, std::string_view name) {
  return FindMemoryLine(ReadOf(process, "status"), name).value_or(0);
}

std::int64_t ProcessorUs(pid_t process) {
  constexpr int kBeforeTimes = 11;  // fields of proc(5) from the one behind the name on
  const std::string text = ReadOf(process, "stat");
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string field;
  for (int i = 0; i < kBeforeTimes; ++i) {
    fields >> field;
  }
  std::int64_t user = 0;
  std::int64_t system = 0;
  fields >> user >> system;
  return (user + system) * 1'000'000 / sysconf(_SC_CLK_TCK);
}

}  // namespace dsa::testing
