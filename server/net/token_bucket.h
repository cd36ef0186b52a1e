// Amounts that time gives back.  Not thread-safe.
#pragma once

#include "common/clock.h"

#include <algorithm>
#include <cstdint>

namespace dsa {

// What may be spent: at most `burst` at once, and `per_s` more each second.  It starts full.
class TokenBucket final {
 public:
  TokenBucket(double burst, double per_s, MonotonicUs now_us)
      : burst_(burst), per_s_(per_s), tokens_(burst), updated_us_(now_us) {}

  // False, and nothing spent, where less than `cost` is left.
  bool Take(double cost, MonotonicUs now_us) {
    Give(per_s_ * static_cast<double>(now_us - updated_us_) * 1e-6);
    updated_us_ = now_us;
    if (tokens_ < cost) {
      return false;
    }
    tokens_ -= cost;
    return true;
  }

  void Give(double tokens) { tokens_ = std::min(burst_, tokens_ + tokens); }

 private:
  double burst_;
  double per_s_;
  double tokens_;
  MonotonicUs updated_us_;
};

// A level that sinks by `per_s` each second, down to 0.
class SinkingLevel final {
 public:
  explicit SinkingLevel(double per_s) : per_s_(per_s) {}

  void Add(double amount, MonotonicUs now_us) {
    level_ = At(now_us) + amount, updated_us_ = now_us;
  }
  double At(MonotonicUs now_us) const {
    return std::max(0.0, level_ - per_s_ * static_cast<double>(now_us - updated_us_) * 1e-6);
  }

 private:
  double per_s_;
  double level_ = 0;
  MonotonicUs updated_us_ = 0;
};

}  // namespace dsa
