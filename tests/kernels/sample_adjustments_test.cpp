// Sample: adjustments and masks.
#include "tests/kernels/sample_testing.h"

namespace dsa::sample_adjustments_test {

using namespace testing::sample;

TEST_CASE("Repetition and then the addend change a logit before temperature", "[kernels][sample]") {
  const auto greedy = [](std::vector<float> logits, std::vector<LogitAdjustment> adjustments) {
    SamplingRow row = kGreedy;
    row.adjustments_count = static_cast<std::int32_t>(adjustments.size());
    row.top_logprobs = 1;
    const auto limit = static_cast<std::int32_t>(logits.size());
    return Run(testing::TestBackend(), {.logits = {std::move(logits)},
                                        .logit_rows = {},
                                        .rows = {row},
                                        .adjustments = std::move(adjustments),
                                        .vocabulary_limit = limit});
  };
  // A positive logit is divided, a negative one multiplied, each before the addend.
  CHECK(greedy({4, 2.1F}, {{.id = 0, .add = 0.0F, .repetition = 2.0F}}).tokens[0] == 1);
  CHECK(greedy({4, 1.9F}, {{.id = 0, .add = 0.0F, .repetition = 2.0F}}).tokens[0] == 0);
  CHECK(greedy({-1, -1.9F}, {{.id = 0, .add = 0.0F, .repetition = 2.0F}}).tokens[0] == 1);
  CHECK(greedy({-1, -2.1F}, {{.id = 0, .add = 0.0F, .repetition = 2.0F}}).tokens[0] == 0);
  CHECK(greedy({4, 2.9F}, {{.id = 0, .add = 1.0F, .repetition = 2.0F}}).tokens[0] == 0);
  CHECK(greedy({4, 3.1F}, {{.id = 0, .add = 1.0F, .repetition = 2.0F}}).tokens[0] == 1);
  CHECK(greedy({0, 0, 0}, {{.id = 1, .add = 0.5F, .repetition = 9.0F}}).tokens[0] == 1);
  CHECK(greedy({3e38F, 2e38F, 0}, {{.id = 1, .add = 3e38F, .repetition = 1.0F}}).tokens[0] == 1);
  CHECK(greedy({3e38F, 1, 0}, {{.id = 1, .add = 0.0F, .repetition = 1e-39F}}).tokens[0] == 1);
  // Log-probabilities stay raw, and so does their order.
  const Sampled sampled = greedy({2, 1, 0}, {{.id = 2, .add = 5.0F, .repetition = 1.0F},
                                             {.id = 1, .add = -1.0F, .repetition = 1.0F}});
  CHECK(sampled.tokens[0] == 2);
  CHECK(sampled.logprobs[0] == Approx(LogProbability({2, 1, 0}, 2)).epsilon(1e-6));
  CHECK(sampled.top_ids[0] == 0);
  // An adjusted id that is suppressed as well stays so.
  auto twice = Suppressing({2});
  twice.push_back({.id = 2, .add = 50.0F, .repetition = 1.0F});
  CHECK(greedy({2, 1, 0}, twice).tokens[0] == 0);
}

TEST_CASE("A mask admits its ids alone", "[kernels][sample]") {
  const auto temperature = GENERATE(0.0F, 1.0F);
  std::vector<float> logits(200, 0.0F);
  logits[199] = 90.0F;
  logits[64] = 50.0F;
  logits[63] = 49.0F;
  std::vector<std::uint64_t> masks(12, 0);  // of three rows, four words each
  masks[4 + 0] = 1ULL << 63;
  masks[4 + 1] = 1ULL << 0;
  masks[8 + 1] = ~1ULL;
  SamplingRow row = Random(temperature);
  row.top_logprobs = 3;
  SamplingRow first = row;
  first.mask = 1;
  SamplingRow nothing = row;
  nothing.mask = 0;
  SamplingRow second = row;
  second.mask = 2;
  const Sampled sampled = Run(testing::TestBackend(), {.logits = {logits},
                                                       .logit_rows = {0, 0, 0, 0},
                                                       .rows = {row, first, nothing, second},
                                                       .adjustments = {},
                                                       .vocabulary_limit = 200,
                                                       .masks = masks});
  CHECK(sampled.tokens[0] == 199);
  CHECK((sampled.tokens[1] == 64 || sampled.tokens[1] == 63));
  CHECK(std::vector<std::int32_t>(sampled.top_ids.begin() + 20, sampled.top_ids.begin() + 23) ==
        std::vector<std::int32_t>{64, 63, -1});
  CHECK(sampled.top_logprobs[20] == Approx(LogProbability({50, 49}, 0)).epsilon(1e-6));
  CHECK(sampled.tokens[3] > 64);
  CHECK(sampled.tokens[3] < 128);
  CHECK(sampled.tokens[2] == 0);
  CHECK(sampled.top_ids[40] == -1);
  CHECK(sampled.faults == std::vector<std::int32_t>{kForeignFault, kForeignFault,
                                                    kForeignFault | kRowFaultNoCandidate,
                                                    kForeignFault});
}

TEST_CASE("The largest addend gives a row its token", "[kernels][sample]") {
  const std::vector<float> logits = testing::RandomFloat(5000, 2.0F, 77);
  Request request{.logits = {logits},
                  .logit_rows = {},
                  .rows = {},
                  .adjustments = {},
                  .vocabulary_limit = 5000};
  for (const std::int32_t given : {0, 1, 2500, 4998, 4999}) {
    SamplingRow row = kGreedy;
    row.top_logprobs = 3;
    row.adjustments_first = static_cast<std::int32_t>(request.adjustments.size());
    row.adjustments_count = 1;
    request.adjustments.push_back(
        {.id = given, .add = std::numeric_limits<float>::max(), .repetition = 1.0F});
    request.rows.push_back(row);
    request.logit_rows.push_back(0);
  }
  const Sampled sampled = Run(testing::TestBackend(), request);
  const auto best =
      static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  for (std::size_t i = 0; i < request.rows.size(); ++i) {
    CAPTURE(i);
    CHECK(sampled.tokens[i] == request.adjustments[i].id);
    CHECK(sampled.logprobs[i] == Approx(LogProbability(logits, sampled.tokens[i])).epsilon(1e-6));
    CHECK(sampled.top_ids[i * 20] == best);
  }
}

TEST_CASE("Adjustments and masks agree with logits made by hand", "[kernels][sample]") {
  constexpr std::int32_t kVocabulary = 5000;
  std::mt19937 engine(11);
  Request request{.logits = {},
                  .logit_rows = {},
                  .rows = {},
                  .adjustments = {},
                  .vocabulary_limit = kVocabulary,
                  .masks = std::vector<std::uint64_t>(79)};
  for (std::uint64_t& word : request.masks) {
    word = engine() | static_cast<std::uint64_t>(engine()) << 32;
  }
  std::vector<std::vector<float>> made;
  for (int i = 0; i < 40; ++i) {
    request.logits.push_back(testing::RandomFloat(kVocabulary, 2.0F, 700 + i));
    std::vector<float> logits = request.logits.back();
    SamplingRow row = Random(0.8F);
    row.top_p = 0.9F;
    row.seed = engine();
    row.mask = i % 2 - 1;
    row.adjustments_first = static_cast<std::int32_t>(request.adjustments.size());
    for (std::int32_t id = i; id < kVocabulary; id += 1 + i % 5) {
      const float add = engine() % 9 == 0 ? -kInfinity : static_cast<float>(engine() % 100) * 0.01F;
      const float repetition = 1.0F + static_cast<float>(engine() % 4) * 0.25F;
      request.adjustments.push_back({.id = id, .add = add, .repetition = repetition});
      float& logit = logits[static_cast<std::size_t>(id)];
      logit = (logit > 0.0F ? logit / repetition : logit * repetition) + add;
    }
    row.adjustments_count =
        static_cast<std::int32_t>(request.adjustments.size()) - row.adjustments_first;
    for (std::size_t id = 0; row.mask == 0 && id < logits.size(); ++id) {
      if ((request.masks[id / 64] >> (id % 64) & 1U) == 0) {
        logits[id] = -kInfinity;
      }
    }
    request.rows.push_back(row);
    made.push_back(std::move(logits));
  }
  const Sampled sampled = Run(testing::TestBackend(), request);
  for (std::size_t i = 0; i < made.size(); ++i) {
    CAPTURE(i);
    CHECK(sampled.tokens[i] == Expected(made[i], request.rows[i]));
  }
}

}  // namespace dsa::sample_adjustments_test
