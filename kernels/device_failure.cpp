#include "kernels/device_failure.h"

#include <atomic>
#include <csignal>
#include <cstdio>
#include <utility>

#include <unistd.h>

namespace dsa {
namespace {

DeviceFailureHandler& Handler() {
  static DeviceFailureHandler handler;
  return handler;
}

ThreadFailureHandler& ThreadHandler() {
  static thread_local ThreadFailureHandler handler;
  return handler;
}

void EndNow(int /*signal*/) {
  _exit(kDeviceFailedExitCode);
}

}  // namespace

void SetDeviceFailureHandler(DeviceFailureHandler handler) {
  Handler() = std::move(handler);
}

void SetThreadFailureHandler(ThreadFailureHandler handler) {
  ThreadHandler() = std::move(handler);
}

void DeviceFailed(std::string_view reason) {
  if (ThreadHandler()) {
    ThreadHandler()(reason);
  }
  static std::atomic<bool> failed{false};
  if (!failed.exchange(true, std::memory_order_relaxed)) {
    std::signal(SIGALRM, EndNow);
    alarm(kDeviceFailureSeconds);
    const std::string text(reason);
    std::fprintf(stderr, "error: device failed: %s\n", text.c_str());
    if (Handler()) {
      Handler()(text);
    }
  }
  _exit(kDeviceFailedExitCode);
}

}  // namespace dsa
