#include "model/tensor_stream.h"

#include "common/machine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace dsa {
namespace {

// A ring of buffers between the readers and the consumer: item i goes through slot i % slots.
class ReadAhead final {
 public:
  ReadAhead(const Checkpoint& checkpoint, std::span<const StreamItem> items)
      : checkpoint_(checkpoint), items_(items) {
    constexpr std::size_t kReadersMax = 8;
    const auto cpus = static_cast<std::size_t>(CountUsableCpus().count());
    const std::size_t readers = std::min({cpus, kReadersMax, items.size()});
    slots_.resize(2 * readers);
    for (std::size_t i = 0; i < readers; ++i) {
      readers_.emplace_back([this] { ReadAll(); });
    }
  }
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  ~ReadAhead() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& reader : readers_) {
      reader.join();
    }
  }

  // The bytes of the next item; valid until the call after this one.
  Result<std::span<const std::byte>> Next() {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_[consumed_ % slots_.size()];
    changed_.wait(lock, [&slot] { return slot.filled; });
    if (!slot.status.ok()) {
      return slot.status.error();
    }
    return std::span<const std::byte>(slot.bytes)
        .first(static_cast<std::size_t>(items_[consumed_].bytes));
  }

  // Gives the buffer of the item from Next back to the readers.
  void Release() {
    {
      const std::lock_guard lock(mutex_);
      slots_[consumed_ % slots_.size()].filled = false;
      ++consumed_;
    }
    changed_.notify_all();
  }

 private:
  struct Slot {
    std::vector<std::byte> bytes;  // a reader's until filled, then the consumer's
    bool filled = false;           // guarded by mutex_
    Status status;                 // guarded by mutex_
  };

  void ReadAll() {
    while (true) {
      std::size_t index = 0;
      {
        std::unique_lock lock(mutex_);
        index = next_++;
        changed_.wait(lock, [this, index] {
          return stopped_ || index >= items_.size() || index < consumed_ + slots_.size();
        });
        if (stopped_ || index >= items_.size()) {
          return;
        }
      }
      Slot& slot = slots_[index % slots_.size()];
      const StreamItem& item = items_[index];
      const auto bytes = static_cast<std::size_t>(item.bytes);
      slot.bytes.resize(std::max(slot.bytes.size(), bytes));
      Status status = checkpoint_.Read(item.tensor, item.offset, slot.bytes.data(), bytes);
      {
        const std::lock_guard lock(mutex_);
        slot.status = std::move(status);
        slot.filled = true;
      }
      changed_.notify_all();
    }
  }

  // Constant after construction.
  const Checkpoint& checkpoint_;
  std::span<const StreamItem> items_;
  std::vector<std::thread> readers_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;      // guarded by mutex_: the next item to read
  std::size_t consumed_ = 0;  // guarded by mutex_; written by the consumer alone
  bool stopped_ = false;      // guarded by mutex_
};

}  // namespace

Status StreamTensors(const Checkpoint& checkpoint, std::span<const StreamItem> items,
                     const std::function<Status(std::span<const std::byte>)>& consume) {
  if (items.empty()) {
    return {};
  }
  ReadAhead ahead(checkpoint, items);
  for (std::size_t i = 0; i < items.size(); ++i) {
    DSA_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, ahead.Next());
    DSA_RETURN_IF_ERROR(consume(bytes));
    ahead.Release();
  }
  return {};
}

}  // namespace dsa
