// Which sequence goes first.  The scheduler admits in this order and preempts from its end.
#pragma once

#include "scheduler/scheduler_config.h"
#include "scheduler/sequence.h"

#include <memory>

namespace dsa {

class SchedulingPolicy {
 public:
  SchedulingPolicy() = default;
  SchedulingPolicy(const SchedulingPolicy&) = delete;
  SchedulingPolicy& operator=(const SchedulingPolicy&) = delete;
  virtual ~SchedulingPolicy() = default;

  // A strict total order: of two different sequences exactly one is before the other.
  virtual bool Before(const Sequence& a, const Sequence& b) const = 0;
};

std::unique_ptr<SchedulingPolicy> MakePolicy(SchedulingPolicyKind kind);

}  // namespace dsa
