// Sample: exact rules on small vocabularies, a plain restatement over random settings, and the
// distribution of many draws.
#include "tests/kernels/sample_testing.h"

namespace dsa::sample_test {
namespace {

using namespace testing::sample;

// The set of tokens that 400 draws give.
std::vector<std::int32_t> Support(const std::vector<float>& logits, SamplingRow row) {
  Request request{.logits = {logits},
                  .logit_rows = std::vector<std::int32_t>(100, 0),
                  .rows = {},
                  .adjustments = {},
                  .vocabulary_limit = static_cast<std::int32_t>(logits.size())};
  std::vector<std::int32_t> seen;
  for (int batch = 0; batch < 4; ++batch) {
    request.rows.clear();
    for (int i = 0; i < 100; ++i) {
      row.position = batch * 100 + i;
      request.rows.push_back(row);
    }
    const auto tokens = Run(testing::TestBackend(), request).tokens;
    seen.insert(seen.end(), tokens.begin(), tokens.end());
  }
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  return seen;
}

}  // namespace

TEST_CASE("Greedy takes the largest logit, the lower id on ties", "[kernels][sample]") {
  CHECK(RunOne({1, 3, 2, 3}, kGreedy).tokens[0] == 1);
  CHECK(RunOne({-0.0F, 0.0F}, kGreedy).tokens[0] == 0);
  CHECK(RunOne({0.0F, -0.0F}, kGreedy).tokens[0] == 0);
  CHECK(RunOne({-5}, kGreedy).tokens[0] == 0);
  CHECK(RunOne({-3e38F, 3e38F}, kGreedy).tokens[0] == 1);
  CHECK(RunOne({-3e38F, 3e38F}, kGreedy).logprobs[0] == 0.0F);
}

TEST_CASE("Suppressed ids and ids beyond the vocabulary are never sampled", "[kernels][sample]") {
  const auto temperature = GENERATE(0.0F, 1.0F);
  SamplingRow first = Random(temperature);
  first.adjustments_first = 1;
  first.adjustments_count = 2;
  first.top_logprobs = 20;
  SamplingRow second = Random(temperature);
  second.top_logprobs = 20;
  const std::vector<float> logits = {0, 90, 1, 99, 0.5F, 200, 300};
  const Sampled sampled = Run(testing::TestBackend(), {.logits = {logits},
                                                       .logit_rows = {0, 0},
                                                       .rows = {first, second},
                                                       .adjustments = Suppressing({4, 1, 3, 2}),
                                                       .vocabulary_limit = 5});
  CHECK(sampled.tokens[0] != 1);
  CHECK(sampled.tokens[0] != 3);
  CHECK(sampled.tokens[1] == 3);  // the other row suppresses nothing; e^-9 of luck for id 1
  // Log-probabilities are over what is allowed: ids 0, 2 and 4 for the first row.
  const std::vector<std::int32_t> ids(sampled.top_ids.begin(), sampled.top_ids.begin() + 4);
  CHECK(ids == std::vector<std::int32_t>{2, 4, 0, -1});
  CHECK(sampled.top_logprobs[0] == Approx(LogProbability({0, 1, 0.5F}, 1)).epsilon(1e-6));
  CHECK(sampled.top_ids[20] == 3);
  CHECK(sampled.faults == std::vector<std::int32_t>(2, kForeignFault));
}

TEST_CASE("A suppressed id may lie beyond the vocabulary's limit", "[kernels][sample]") {
  SamplingRow row = kGreedy;
  row.adjustments_count = 1;
  CHECK(Run(testing::TestBackend(), {.logits = {{1, 2, 3, 4}},
                                     .logit_rows = {},
                                     .rows = {row},
                                     .adjustments = Suppressing({3}),
                                     .vocabulary_limit = 2})
            .tokens[0] == 1);
}

TEST_CASE("Log-probabilities are raw and ranked", "[kernels][sample]") {
  const auto vocabulary = GENERATE(as<std::int64_t>(), 1, 7, 1000, 129280);
  const auto temperature = GENERATE(0.0F, 0.3F);
  CAPTURE(vocabulary, temperature);
  auto logits = testing::RandomFloat(vocabulary, 3.0F, 1);
  logits[static_cast<std::size_t>(vocabulary / 2)] = logits.front();  // a tie
  SamplingRow row = Random(temperature);
  row.top_logprobs = 5;
  row.min_p = 0.2F;  // filters do not touch log-probabilities
  const Sampled sampled = RunOne(logits, row);
  CHECK(sampled.logprobs[0] == Approx(LogProbability(logits, sampled.tokens[0])).epsilon(2e-6));

  std::vector<std::int32_t> ranked(logits.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  for (int i = 0; i < kTopLogprobsMax; ++i) {
    const bool filled = i < std::min<std::int64_t>(5, vocabulary);
    CHECK(sampled.top_ids[i] == (filled ? ranked[i] : -1));
    CHECK(sampled.top_logprobs[i] ==
          Approx(filled ? LogProbability(logits, ranked[i]) : 0.0).epsilon(2e-6));
  }
}

TEST_CASE("A logit that is not finite fails its row alone", "[kernels][sample]") {
  const auto bad = GENERATE(NAN, kInfinity, -kInfinity);
  const auto temperature = GENERATE(0.0F, 1.0F);
  SamplingRow row = Random(temperature);
  row.top_logprobs = 2;
  SamplingRow suppressing = row;
  suppressing.adjustments_count = 1;
  const Sampled sampled = Run(testing::TestBackend(), {.logits = {{1, bad, 2, 0}, {1, 2, 9, bad}},
                                                       .logit_rows = {0, 1, 0},
                                                       .rows = {row, row, suppressing},
                                                       .adjustments = Suppressing({1}),
                                                       .vocabulary_limit = 3});
  CHECK(sampled.faults == std::vector<std::int32_t>{kForeignFault | kRowFaultLogits, kForeignFault,
                                                    kForeignFault | kRowFaultLogits});
  CHECK(sampled.tokens[0] == 0);
  CHECK(sampled.logprobs[0] == 0.0F);
  CHECK(sampled.top_ids[0] == -1);
  CHECK(sampled.top_ids[20] == 2);  // beyond the limit nothing matters
}

TEST_CASE("Sampling agrees with its restatement", "[kernels][sample]") {
  const auto vocabulary = GENERATE(as<std::int64_t>(), 1, 2, 50, 4000);
  std::mt19937 engine(7);
  const auto pick = [&engine](std::vector<float> values) {
    return values[engine() % values.size()];
  };
  Request request{.logits = {},
                  .logit_rows = {},
                  .rows = {},
                  .adjustments = {},
                  .vocabulary_limit = static_cast<std::int32_t>(vocabulary)};
  for (int i = 0; i < 150; ++i) {
    request.logits.push_back(testing::RandomFloat(vocabulary, 2.0F, 100 + i));
    for (float& logit : request.logits.back()) {
      logit = std::round(logit * 4.0F) / 4.0F;  // many ties
    }
    SamplingRow row = Random(pick({0.1F, 0.7F, 1.0F, 2.0F}));
    row.min_p = pick({0.0F, 0.0F, 0.011F, 0.213F});
    row.top_p = pick({1.0F, 0.03F, 0.517F, 0.913F});
    row.top_k = static_cast<std::int32_t>(pick({0, 1, 3, 40}));
    row.seed = engine();
    row.position = static_cast<std::int64_t>(engine() % 100000);
    request.rows.push_back(row);
  }
  const Sampled sampled = Run(testing::TestBackend(), request);
  for (std::size_t i = 0; i < request.rows.size(); ++i) {
    CAPTURE(i, request.rows[i].temperature, request.rows[i].top_p, request.rows[i].top_k);
    CHECK(sampled.tokens[i] == Expected(request.logits[i], request.rows[i]));
  }
  for (Backend* variant : testing::BackendVariants()) {
    CHECK(Run(*variant, request).tokens == sampled.tokens);
  }
}

TEST_CASE("Filters keep what they promise, at their borders", "[kernels][sample]") {
  const std::vector<float> equal(4, 1.0F);
  SamplingRow row = Random(1.0F);
  CHECK(Support(equal, row) == std::vector<std::int32_t>{0, 1, 2, 3});
  row.top_p = 0.5F;  // two of four equal ones reach it exactly
  CHECK(Support(equal, row) == std::vector<std::int32_t>{0, 1});
  row.top_p = 0.5001F;
  CHECK(Support(equal, row) == std::vector<std::int32_t>{0, 1, 2});
  row.top_p = 1e-6F;  // never none
  CHECK(Support(equal, row) == std::vector<std::int32_t>{0});
  row = Random(1.0F);
  row.top_k = 3;
  CHECK(Support({0, 1, 1, 1, 1}, row) == std::vector<std::int32_t>{1, 2, 3});
  row.top_k = 9;
  CHECK(Support(equal, row).size() == 4);
  row = Random(1.0F);
  row.min_p = 1.0F;  // the largest alone, with its ties
  CHECK(Support({2, 1, 2, 1.999999F}, row) == std::vector<std::int32_t>{0, 2});
}

TEST_CASE("Temperature comes before min_p, and top_k before top_p", "[kernels][sample]") {
  SamplingRow row = Random(2.0F);
  row.min_p = 0.5F;  // e^-1 raw, e^-0.5 = 0.61 after temperature
  CHECK(Support({1, 0}, row) == std::vector<std::int32_t>{0, 1});
  row.temperature = 0.5F;
  CHECK(Support({1, 0.5F}, row) == std::vector<std::int32_t>{0});  // e^-1
  // Over all ids 0.6 needs three; over the two kept by top_k it needs two, and 0.5 needs one.
  row = Random(1.0F);
  row.top_k = 2;
  row.top_p = 0.5F;
  CHECK(Support({0, 0, 0, 0}, row) == std::vector<std::int32_t>{0});
  // min_p first: without the small ones the two large ones are 1/2 each.
  row = Random(1.0F);
  row.min_p = 0.5F;
  row.top_p = 0.5F;
  CHECK(Support({0, 0, -1, -1, -1, -1, -1, -1}, row) == std::vector<std::int32_t>{0});
}

TEST_CASE("Draws follow the distribution and depend on seed and position", "[kernels][sample]") {
  const std::vector<float> logits = {0.0F, 1.0F, -1.0F, 0.5F};
  constexpr int kBatches = 200;
  std::vector<int> counts(4, 0);
  Request request{.logits = {logits},
                  .logit_rows = std::vector<std::int32_t>(100, 0),
                  .rows = std::vector<SamplingRow>(100, Random(0.8F)),
                  .adjustments = {},
                  .vocabulary_limit = 4};
  for (int batch = 0; batch < kBatches; ++batch) {
    for (int i = 0; i < 100; ++i) {
      request.rows[static_cast<std::size_t>(i)].seed = static_cast<std::uint64_t>(batch);
      request.rows[static_cast<std::size_t>(i)].position = i;
    }
    for (const std::int32_t token : Run(testing::TestBackend(), request).tokens) {
      ++counts[static_cast<std::size_t>(token)];
    }
  }
  double sum = 0.0;
  for (const float logit : logits) {
    sum += std::exp(logit / 0.8);
  }
  constexpr double kDraws = 100.0 * kBatches;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const double p = std::exp(logits[id] / 0.8) / sum;
    CHECK(std::fabs(counts[id] - p * kDraws) < 4.0 * std::sqrt(kDraws * p * (1.0 - p)));
  }
}

TEST_CASE("A row samples from the logits that it names", "[kernels][sample]") {
  CHECK(Run(testing::TestBackend(), {.logits = {{9, 0, 0, 0}, {0, 9, 0, 0}, {0, 0, 9, 0}},
                                     .logit_rows = {2, 0, 0, 1},
                                     .rows = std::vector<SamplingRow>(4, kGreedy),
                                     .adjustments = {},
                                     .vocabulary_limit = 4})
            .tokens == std::vector<std::int32_t>{2, 0, 0, 1});
}

TEST_CASE("Sample of no rows", "[kernels][sample]") {
  CHECK(Run(testing::TestBackend(), {.logits = {{1, 2}},
                                     .logit_rows = {},
                                     .rows = {},
                                     .adjustments = {},
                                     .vocabulary_limit = 2})
            .tokens.empty());
}

TEST_CASE("A very small temperature is greedy", "[kernels][sample]") {
  CHECK(RunOne({1, 1.0001F, 0}, Random(1e-30F)).tokens[0] == 1);
  CHECK(RunOne({-3e38F, 3e38F, 0}, Random(1e-38F)).tokens[0] == 1);
}

}  // namespace dsa::sample_test
