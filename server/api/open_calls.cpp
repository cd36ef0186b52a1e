#include "server/api/open_calls.h"

#include <chrono>

namespace dsa {
namespace {

constexpr std::chrono::milliseconds kPeriod{100};

}  // namespace

OpenCalls::OpenCalls() : thread_([this] { Run(); }) {}

OpenCalls::~OpenCalls() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void OpenCalls::Add(OpenCall* call) {
  const std::lock_guard lock(mutex_);
  if (calls_.empty()) {
    changed_.notify_one();
  }
  calls_.insert(call);
}

void OpenCalls::Remove(OpenCall* call) {
  const std::lock_guard lock(mutex_);
  calls_.erase(call);
}

void OpenCalls::Run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait(lock, [this] { return stopping_ || !calls_.empty(); });
    changed_.wait_for(lock, kPeriod, [this] { return stopping_; });
    for (OpenCall* call : calls_) {
      call->Look();
    }
  }
}

}  // namespace dsa
