// Where a loader says how far it is.  Called on the loading thread.
#pragma once

#include <cstdint>

namespace dsa {

class LoadProgress {
 public:
  LoadProgress() = default;
  LoadProgress(const LoadProgress&) = delete;
  LoadProgress& operator=(const LoadProgress&) = delete;
  virtual ~LoadProgress() = default;

  // `bytes` of `bytes_total` are on the device.  The last call has both equal.
  virtual void OnBytes(std::int64_t bytes, std::int64_t bytes_total) = 0;
};

// For callers that show nothing.
class NoProgress final : public LoadProgress {
 public:
  void OnBytes(std::int64_t /*bytes*/, std::int64_t /*bytes_total*/) override {}
};

}  // namespace dsa
