#include "model/tensor_stream.h"

#include "common/check.h"
#include "common/machine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace dsa {
namespace {

constexpr std::size_t kReadersMax = 8;
static_assert(2 * kReadersMax * kStreamChunkBytes == kStreamBytesMax, "two slots for each reader");

// The ring between the readers and the caller: piece i goes through slot i % slots.
class Ring final {
 public:
  Ring(std::span<const std::int64_t> piece_bytes, const StreamCalls& calls,
       std::vector<HostBuffer> buffers)
      : piece_bytes_(piece_bytes), calls_(calls), buffers_(std::move(buffers)) {
    slots_.resize(buffers_.size());
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  ~Ring() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& reader : readers_) {
      reader.join();
    }
  }

  void Start(std::size_t readers) {
    for (std::size_t i = 0; i < readers; ++i) {
      readers_.emplace_back([this] { FillAll(); });
    }
  }

  std::size_t slots() const { return buffers_.size(); }

  // Waits until `piece` is filled.
  Result<const HostBuffer*> WaitFor(std::size_t piece) {
    const std::size_t index = piece % slots_.size();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this, index] { return slots_[index].filled; });
    if (!slots_[index].status.ok()) {
      return slots_[index].status.error();
    }
    return &buffers_[index];
  }

  // Gives the slot of `piece` back to the readers; pieces in order.
  void Release(std::size_t piece) {
    {
      const std::lock_guard lock(mutex_);
      slots_[piece % slots_.size()].filled = false;
      released_ = piece + 1;
    }
    changed_.notify_all();
  }

 private:
  struct Slot {
    bool filled = false;  // guarded by mutex_; its buffer is a reader's until then
    Status status;        // guarded by mutex_
  };

  void FillAll() {
    while (true) {
      std::size_t piece = 0;
      {
        std::unique_lock lock(mutex_);
        piece = next_++;
        changed_.wait(lock, [this, piece] {
          return stopped_ || piece >= piece_bytes_.size() || piece < released_ + slots_.size();
        });
        if (stopped_ || piece >= piece_bytes_.size()) {
          return;
        }
      }
      const std::size_t index = piece % slots_.size();
      const auto bytes = static_cast<std::size_t>(piece_bytes_[piece]);
      Status status = calls_.fill(piece, {buffers_[index].As<std::byte>(), bytes});
      {
        const std::lock_guard lock(mutex_);
        slots_[index].status = std::move(status);
        slots_[index].filled = true;
      }
      changed_.notify_all();
    }
  }

  // Constant after construction.
  const std::span<const std::int64_t> piece_bytes_;
  const StreamCalls& calls_;
  const std::vector<HostBuffer> buffers_;
  std::vector<std::thread> readers_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;      // guarded by mutex_: the next piece to fill
  std::size_t released_ = 0;  // guarded by mutex_: pieces before it have left their slots
  bool stopped_ = false;      // guarded by mutex_
};

Status TakeAll(std::span<Backend* const> backends, std::size_t pieces, const StreamCalls& calls,
               Ring& ring) {
  // Copies in flight: half of the ring, the other half is the readers'.
  const std::size_t lag =
      std::clamp<std::size_t>(ring.slots() / 2, 1, static_cast<std::size_t>(kEvents));
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    DSA_ASSIGN_OR_RETURN(const HostBuffer* buffer, ring.WaitFor(piece));
    calls.take(piece, *buffer);
    for (Backend* const backend : backends) {
      backend->Mark(static_cast<int>(piece % lag));
    }
    if (piece + 1 >= lag) {
      const std::size_t copied = piece + 1 - lag;
      for (Backend* const backend : backends) {
        backend->WaitFor(static_cast<int>(copied % lag));
      }
      ring.Release(copied);
    }
  }
  return {};
}

}  // namespace

Status StreamPieces(std::span<Backend* const> backends, std::span<const std::int64_t> piece_bytes,
                    const StreamCalls& calls) {
  if (piece_bytes.empty()) {
    return {};
  }
  const std::int64_t largest = *std::max_element(piece_bytes.begin(), piece_bytes.end());
  DSA_CHECK(largest <= kStreamChunkBytes, "StreamPieces: a piece of {} bytes, at most {}", largest,
            kStreamChunkBytes);
  const auto cpus = static_cast<std::size_t>(CountUsableCpus().count());
  const std::size_t readers = std::min({cpus, kReadersMax, piece_bytes.size()});
  std::vector<HostBuffer> buffers(std::min(2 * readers, piece_bytes.size()));
  for (HostBuffer& buffer : buffers) {
    DSA_ASSIGN_OR_RETURN(buffer, backends.front()->AllocateHost(static_cast<std::size_t>(largest)));
  }
  Ring ring(piece_bytes, calls, std::move(buffers));
  ring.Start(readers);
  Status status = TakeAll(backends, piece_bytes.size(), calls, ring);
  for (Backend* const backend : backends) {
    backend->Synchronize();  // before the buffers go
  }
  return status;
}

}  // namespace dsa
