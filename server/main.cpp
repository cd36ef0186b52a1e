#include "common/last_line.h"
#include "server/cli/run.h"

#include <csignal>
#include <exception>
#include <new>
#include <system_error>

#include <fmt/core.h>
#include <unistd.h>

namespace {

constexpr int kNoMemoryOrThreads = 3;

// One line and an exit code: what a library threw, or that there is no memory or no thread.  None
// of ours is thrown.
int Report(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::bad_alloc&) {
    dsa::WriteLastLine("error: not enough memory\n");
    return kNoMemoryOrThreads;
  } catch (const std::system_error& error) {
    dsa::WriteLastLine(fmt::format("error: {}\n", error.what()));
    return error.code() == std::errc::resource_unavailable_try_again ? kNoMemoryOrThreads : 1;
  } catch (const std::exception& error) {
    dsa::WriteLastLine(fmt::format("error: {}\n", error.what()));
    return 1;
  }
}

// On a thread that nobody can answer for, the process ends, but not without a word.
[[noreturn]] void OnTerminate() {
  _exit(std::current_exception() == nullptr ? 1 : Report(std::current_exception()));
}

}  // namespace

int main(int argc, char** argv) {
  std::set_terminate(OnTerminate);
  try {
    return dsa::RunProgram(argc, argv);
  } catch (const std::exception&) {
    return Report(std::current_exception());
  }
}
