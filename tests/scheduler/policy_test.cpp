#include "scheduler/policy.h"

#include "tests/scheduler/testing.h"

#include <memory>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

TEST_CASE("Every policy is a strict total order", "[scheduler][policy]") {
  const auto kind = GENERATE(SchedulingPolicyKind::kFirstCome, SchedulingPolicyKind::kPriority);
  const auto policy = MakePolicy(kind);
  testing::SchedulerRig rig({.blocks = 64});
  std::vector<const Sequence*> sequences;
  for (const std::int32_t priority : {0, 2, -1, 2, 0, 0}) {
    sequences.push_back(&rig.Add({.prompt = 3, .max_tokens = 2, .priority = priority}));
  }
  for (const Sequence* a : sequences) {
    CHECK_FALSE(policy->Before(*a, *a));
    for (const Sequence* b : sequences) {
      if (a != b) {
        CHECK(policy->Before(*a, *b) != policy->Before(*b, *a));
      }
      for (const Sequence* c : sequences) {
        if (policy->Before(*a, *b) && policy->Before(*b, *c)) {
          CHECK(policy->Before(*a, *c));
        }
      }
    }
  }
}

TEST_CASE("Priority goes before arrival, and arrival decides among equals", "[scheduler][policy]") {
  testing::SchedulerRig rig({.blocks = 64});
  const Sequence& early = rig.Add({.prompt = 3, .max_tokens = 2, .priority = 1});
  const Sequence& late = rig.Add({.prompt = 3, .max_tokens = 2, .priority = 1});
  const Sequence& urgent = rig.Add({.prompt = 3, .max_tokens = 2, .priority = 0});
  const auto priority = MakePolicy(SchedulingPolicyKind::kPriority);
  CHECK(priority->Before(urgent, early));
  CHECK(priority->Before(early, late));
  const auto first_come = MakePolicy(SchedulingPolicyKind::kFirstCome);
  CHECK(first_come->Before(early, urgent));
}

}  // namespace
}  // namespace dsa
