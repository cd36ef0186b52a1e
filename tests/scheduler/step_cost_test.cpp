#include "scheduler/step_cost.h"

#include "common/prng.h"

#include <cmath>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

// A machine: microseconds of a step, a sampled row, and rows and keys of two paths.
struct Machine {
  double step_us;
  double sample_us;
  double dense_row_us;
  double dense_key_us;
  double sparse_row_us;
  double sparse_key_us;
  double slower = 1;
  std::uint64_t draws = 0;

  // Within 10 % of the truth.
  std::int64_t Run(const StepWork& work) {
    const auto of = [](const auto& counts, AttentionPath path) {
      return static_cast<double>(counts[static_cast<std::size_t>(path)]);
    };
    const double us = step_us + sample_us * static_cast<double>(work.samples) +
                      dense_row_us * of(work.rows, AttentionPath::kDense) +
                      dense_key_us * of(work.keys, AttentionPath::kDense) +
                      sparse_row_us * of(work.rows, AttentionPath::kSparse) +
                      sparse_key_us * of(work.keys, AttentionPath::kSparse);
    return std::llround(us * slower * (0.9 + 0.2 * CounterUniform(3, draws++)));
  }
};

// A small model on two CPUs and a large one on a GPU.
constexpr Machine kSlow{5000, 500, 1500, 0.15, 2500, 0.25};
constexpr Machine kFast{4000, 20, 12, 0.0001, 25, 0.002};

StepWork Chunk(std::int64_t first, std::int64_t tokens) {
  StepWork work;
  work.Add(AttentionPath::kSparse, first, tokens, 0);
  return work;
}

StepWork Replies(std::int64_t sequences, std::int64_t position) {
  StepWork work;
  for (std::int64_t i = 0; i < sequences; ++i) {
    work.Add(AttentionPath::kSparse, position, 1, 1);
  }
  return work;
}

// Replies for a while, then a prompt beside them.
void Teach(StepCostModel& costs, Machine& machine) {
  for (std::int64_t step = 0; step < 200; ++step) {
    const StepWork work = Replies(8, 3000 + step);
    costs.Measure(work, machine.Run(work));
  }
  for (std::int64_t position = 0, tokens = 16; position < 8000; position += tokens) {
    tokens = std::min<std::int64_t>(costs.RowsMax(AttentionPath::kSparse) - 8, 100);
    StepWork work = Replies(8, 3000 + position / 100);
    work.Add(AttentionPath::kSparse, position, tokens, 0);
    costs.Measure(work, machine.Run(work));
  }
}

double Ratio(const StepCostModel& costs, Machine& machine, const StepWork& work) {
  return costs.EstimateUs(work) / static_cast<double>(machine.Run(work));
}

TEST_CASE("Work counts rows, samples and keys of each path", "[step_cost]") {
  StepWork work;
  work.Add(AttentionPath::kDense, 10, 3, 1);  // rows that see 11, 12 and 13 keys
  work.Add(AttentionPath::kSparse, 99, 1, 1);
  work.Add(AttentionPath::kMaskedAll, 0, 2, 0);
  CHECK(work.samples == 2);
  CHECK(work.rows == std::array<std::int64_t, kAttentionPaths>{3, 2, 0, 1});
  CHECK(work.keys == std::array<std::int64_t, kAttentionPaths>{36, 3 + 171 * 2, 0, 100});
}

TEST_CASE("Measured steps teach what others take", "[step_cost]") {
  Machine machine = GENERATE(kSlow, kFast);
  StepCostModel costs;
  CHECK(costs.EstimateUs(Replies(1, 1)) == 0);
  Teach(costs, machine);
  StepWork mixed = Replies(8, 3100);
  mixed.Add(AttentionPath::kSparse, 8000, 90, 0);
  CHECK(Ratio(costs, machine, mixed) == Approx(1).margin(0.2));
  CHECK(Ratio(costs, machine, Chunk(8000, 150)) == Approx(1).margin(0.3));
  // What replies take alone is not seen beside a prompt, but soon after it.
  for (int step = 0; step < 5; ++step) {
    const StepWork work = Replies(8, 3100);
    costs.Measure(work, machine.Run(work));
  }
  CHECK(Ratio(costs, machine, Replies(8, 3100)) == Approx(1).margin(0.3));
  // What the work adds is all but what every step takes.
  const double added_us = costs.AddedUs(Chunk(8000, 60));
  CHECK(costs.EstimateUs(Chunk(8000, 60)) - added_us == Approx(costs.EstimateUs({})));
}

TEST_CASE("What is met for the first time is what the rest of the step leaves", "[step_cost]") {
  StepCostModel costs;
  Machine machine = kSlow;
  for (std::int64_t step = 0; step < 200; ++step) {
    const StepWork work = Replies(8, 3000 + step);
    costs.Measure(work, machine.Run(work));
  }
  StepWork work = Replies(8, 3200);
  work.Add(AttentionPath::kDense, 100, 16, 0);
  costs.Measure(work, machine.Run(work));
  CHECK(Ratio(costs, machine, work) == Approx(1).epsilon(0.25));
  CHECK(Ratio(costs, machine, Replies(8, 3200)) == Approx(1).epsilon(0.25));
}

TEST_CASE("Rows of a path are trusted for twice what was measured", "[step_cost]") {
  StepCostModel costs;
  CHECK(costs.RowsMax(AttentionPath::kSparse) == 16);
  costs.Measure(Chunk(0, 5), 1000);
  CHECK(costs.RowsMax(AttentionPath::kSparse) == 16);
  costs.Measure(Chunk(0, 16), 1000);
  CHECK(costs.RowsMax(AttentionPath::kSparse) == 32);
  CHECK(costs.RowsMax(AttentionPath::kDense) == 16);
  costs.Measure(Chunk(0, 3), 1000);
  CHECK(costs.RowsMax(AttentionPath::kSparse) == 32);
}

TEST_CASE("A machine that gets slower is believed within ten steps, prompts in part",
          "[step_cost]") {
  Machine machine = GENERATE(kSlow, kFast);
  StepCostModel costs;
  Teach(costs, machine);
  const double before_us = costs.EstimateUs(Chunk(8000, 100));
  machine.slower = 3;
  for (std::int64_t step = 0; step < 10; ++step) {
    const StepWork work = Replies(8, 3300 + step);
    costs.Measure(work, machine.Run(work));
  }
  CHECK(Ratio(costs, machine, Replies(8, 3320)) == Approx(1).margin(0.3));
  CHECK(costs.EstimateUs(Chunk(8000, 100)) > 1.3 * before_us);
}

TEST_CASE("One step of any length at most doubles an estimate, and is forgotten", "[step_cost]") {
  Machine machine = kSlow;
  StepCostModel costs;
  Teach(costs, machine);
  const StepWork work = Replies(8, 3300);
  const double before_us = costs.EstimateUs(work);
  costs.Measure(work, 60'000'000);
  CHECK(costs.EstimateUs(work) < 2 * before_us);
  for (int step = 0; step < 20; ++step) {
    costs.Measure(work, machine.Run(work));
  }
  CHECK(Ratio(costs, machine, work) == Approx(1).margin(0.3));
}

TEST_CASE("A million equal steps leave the estimate of others alone", "[step_cost]") {
  Machine machine = kSlow;
  StepCostModel costs;
  Teach(costs, machine);
  for (int step = 0; step < 1'000'000; ++step) {
    const StepWork work = Replies(8, 3300);
    costs.Measure(work, machine.Run(work));
  }
  CHECK(Ratio(costs, machine, Replies(8, 3300)) == Approx(1).margin(0.3));
  const double ratio = Ratio(costs, machine, Chunk(8000, 100));
  CHECK(ratio > 0.5);
  CHECK(ratio < 3);
}

TEST_CASE("Equal steps give equal bits", "[step_cost]") {
  StepCostModel one;
  StepCostModel other;
  Machine first = kFast;
  Machine second = kFast;
  Teach(one, first);
  Teach(other, second);
  CHECK(one.EstimateUs(Chunk(123, 45)) == other.EstimateUs(Chunk(123, 45)));
}

}  // namespace
}  // namespace dsa
