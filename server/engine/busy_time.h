// Where the engine's time went, as numbers that travel: in a request's usage and in EngineLoad.
#pragma once

#include <atomic>

namespace dsa {

// Of one request, in microseconds of the device (engine/billing.h).
struct RequestCost {
  double prefill_us = 0;  // tokens of its prompt
  double decode_us = 0;   // tokens of its answer
};

// Of all steps so far, in microseconds of the device; the other parts add up to busy_us.
struct BusyTime {
  double busy_us = 0;
  double prefill_us = 0;     // billed
  double decode_us = 0;      // billed
  double recomputed_us = 0;  // tokens again, after a preemption
  double padding_us = 0;     // rows that fill a step up
  double own_us = 0;         // requests of the server's own, such as the warm-up
  double dropped_us = 0;     // of requests that ended while the step ran
};

// BusyTime as the engine thread leaves it for others: each number is consistent by itself.
class BusyCounters final {
 public:
  void Store(const BusyTime& time) {
    busy_us_.store(time.busy_us, std::memory_order_relaxed);
    prefill_us_.store(time.prefill_us, std::memory_order_relaxed);
    decode_us_.store(time.decode_us, std::memory_order_relaxed);
    recomputed_us_.store(time.recomputed_us, std::memory_order_relaxed);
    padding_us_.store(time.padding_us, std::memory_order_relaxed);
    own_us_.store(time.own_us, std::memory_order_relaxed);
    dropped_us_.store(time.dropped_us, std::memory_order_relaxed);
  }
  BusyTime Load() const {
    return {.busy_us = busy_us_.load(std::memory_order_relaxed),
            .prefill_us = prefill_us_.load(std::memory_order_relaxed),
            .decode_us = decode_us_.load(std::memory_order_relaxed),
            .recomputed_us = recomputed_us_.load(std::memory_order_relaxed),
            .padding_us = padding_us_.load(std::memory_order_relaxed),
            .own_us = own_us_.load(std::memory_order_relaxed),
            .dropped_us = dropped_us_.load(std::memory_order_relaxed)};
  }

 private:
  std::atomic<double> busy_us_{0};
  std::atomic<double> prefill_us_{0};
  std::atomic<double> decode_us_{0};
  std::atomic<double> recomputed_us_{0};
  std::atomic<double> padding_us_{0};
  std::atomic<double> own_us_{0};
  std::atomic<double> dropped_us_{0};
};

}  // namespace dsa
