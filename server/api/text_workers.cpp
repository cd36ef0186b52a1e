#include "server/api/text_workers.h"

#include <utility>

#include <fmt/core.h>

namespace dsa {

WorkQueue::WorkQueue(std::size_t places) : places_(places), thread_([this] { Run(); }) {}

WorkQueue::~WorkQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

bool WorkQueue::TryPush(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= places_) {
    return false;
  }
  waiting_.push_back(std::move(work));
  changed_.notify_one();
  return true;
}

void WorkQueue::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) {
      return;
    }
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // what it holds goes before the next one comes
    lock.lock();
  }
}

Status TextWorkers::Do(std::size_t bytes, std::function<void()> work) {
  if (bytes <= kShortBytesMax) {
    work();
    return {};
  }
  const bool large = bytes > kMediumBytesMax;
  if ((large ? large_ : medium_).TryPush(std::move(work))) {
    return {};
  }
  return Error{
      ErrorCode::kResourceExhausted,
      fmt::format("too much text: {} requests of this size wait to be read, at most {}",
                  large ? kLargePlaces : kMediumPlaces, large ? kLargePlaces : kMediumPlaces)};
}

}  // namespace dsa
