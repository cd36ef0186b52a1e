// How evenly the routed experts of a model are hit, since the start: pairs of a row and an expert
// that it goes to, rows of padding left out.  Engine thread.
//
// A step of DeepSeek-V3.2 brings 14,848 counts.  They are added up after each step, 5 us, and
// looked at after every kStepsPerLook steps or when there is nothing else to do, 20 us.
#pragma once

#include "model/step_buffers.h"

#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

// Experts [first, first + count) of every layer that has experts.
struct ExpertShare {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

class ExpertLoad final {
 public:
  static constexpr std::int64_t kStepsPerLook = 64;

  explicit ExpertLoad(const ExpertExtents& extents);  // without layers nothing is counted

  // Of the rows of one data rank in a step, [L, E]; empty where the executor does not count.
  void Add(std::span<const std::int32_t> pairs);
  // Behind the last Add of a step.  True where it is time to look.
  bool EndStep() { return ++steps_ >= kStepsPerLook; }

  // Of some experts, by rows of all data ranks.
  struct Hits {
    std::int64_t pairs = 0;
    // The expert of a layer that most rows went to, over what each of its experts got on average;
    // summed over layers, above and below.  1: even.  0 without pairs.
    double max_over_mean = 0.0;
  };
  // Takes in what was added.
  void Look();
  bool is_behind() const { return steps_ > 0; }
  // As of the last Look.
  Hits Of(const ExpertShare& share) const;

 private:
  const ExpertExtents extents_;
  std::vector<std::int64_t> pairs_;   // [L, E]  as of the last Look
  std::vector<std::int32_t> recent_;  // [L, E]  since then, at most kStepsPerLook steps
  std::int64_t steps_ = 0;            // since then
};

}  // namespace dsa
