#include "common/check.h"
#include "scheduler/policy.h"

namespace dsa {
namespace {

class FirstCome final : public SchedulingPolicy {
 public:
  bool Before(const Sequence& a, const Sequence& b) const override { return a.id() < b.id(); }
};

class Priority final : public SchedulingPolicy {
 public:
  bool Before(const Sequence& a, const Sequence& b) const override {
    if (a.request().priority != b.request().priority) {
      return a.request().priority < b.request().priority;
    }
    return a.id() < b.id();
  }
};

}  // namespace

std::unique_ptr<SchedulingPolicy> MakePolicy(SchedulingPolicyKind kind) {
  switch (kind) {
    case SchedulingPolicyKind::kFirstCome: return std::make_unique<FirstCome>();
    case SchedulingPolicyKind::kPriority: return std::make_unique<Priority>();
  }
  DSA_CHECK(false, "MakePolicy: unknown policy {}", static_cast<int>(kind));
}

}  // namespace dsa
