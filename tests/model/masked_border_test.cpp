// masked_mha_until, measured: on an executor whose steps take the time that they are said to, and
// on a real one, which must compute afterwards what it would have without.
#include "server/masked_border.h"

#include "kernels/cpu/cpu_backend.h"
#include "tests/model/golden.h"
#include "tests/model/sequence_runner.h"

#include <utility>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

// A step takes microseconds by the path and the middle of its rows.
class TimedExecutor final : public StepExecutor, public Clock {
 public:
  struct Line {
    double us;          // of a row
    double us_per_key;  // that it sees
  };
  TimedExecutor(Line masked, Line absorbed) : masked_(masked), absorbed_(absorbed) {}

  void Launch(const ForwardBatch& batch) override {
    std::int64_t masked = 0;
    for (int path = 0; path < kAttentionPaths; ++path) {
      const std::int64_t of_path = batch.shape.rows[static_cast<std::size_t>(path)];
      masked += IsMasked(static_cast<AttentionPath>(path)) ? of_path : 0;
      selecting += Selects(static_cast<AttentionPath>(path)) ? of_path : 0;
    }
    REQUIRE((masked == 0 || masked == batch.tokens));
    const Line& line = masked > 0 ? masked_ : absorbed_;
    const double keys = static_cast<double>(batch.positions.front() + batch.positions.back()) / 2;
    double us = static_cast<double>(batch.tokens) * (line.us + line.us_per_key * keys);
    if (++runs_ % 4 == 1) {
      us *= 20;  // the first run of each kind of step: what is slow once
    } else if (runs_ % 4 == 2) {
      us *= 1.3;  // and something else on the machine
    }
    now_us_ += static_cast<MonotonicUs>(us);
    last_position = std::max<std::int64_t>(last_position, batch.positions.back());
    rows += batch.tokens;
  }
  const StepResult& Collect() override { return result_; }
  MonotonicUs NowUs() const override { return now_us_; }

  std::int64_t last_position = 0;
  std::int64_t rows = 0;
  std::int64_t selecting = 0;

 private:
  const Line masked_;
  const Line absorbed_;
  MonotonicUs now_us_ = 0;
  int runs_ = 0;
  StepResult result_{};
};

MaskedBorderOptions BorderOptions(std::int64_t positions, std::int64_t index_topk) {
  return {.positions_max = positions,
          .rows_max = 2048,
          .context_max = 163'840,
          .vocabulary = 1000,
          .attention = index_topk > 0 ? AttentionMode::kSparse : AttentionMode::kDense,
          .index_topk = index_topk};
}

}  // namespace

TEST_CASE("the border lies where two lines cross, to the nearest 1,024", "[model][masked_border]") {
  // Equal at 100 us = 40 + 0.01 keys: 6,000 keys.
  TimedExecutor executor({.us = 40, .us_per_key = 0.01}, {.us = 100, .us_per_key = 0});
  const MaskedBorder border = MeasureMaskedBorder(executor, executor, BorderOptions(16'384, 2048));
  CHECK(border.until == 6 * 1024);
  CHECK(border.near.position == 2048 + 512);
  CHECK(border.far.position == 16'384 - 512);
  CHECK(border.near.absorbed_per_s == Approx(10'000).epsilon(0.001));
  CHECK(border.near.masked_per_s == Approx(1e6 / (40 + 25.595)).epsilon(0.001));
  CHECK(executor.last_position == 16'383);
  CHECK(executor.selecting == executor.rows);
  CHECK(executor.rows == 2 * 2 * 4 * 1024);
}

TEST_CASE("borders at the ends", "[model][masked_border]") {
  const auto until = [](TimedExecutor::Line masked, TimedExecutor::Line absorbed,
                        std::int64_t positions, std::int64_t index_topk) {
    TimedExecutor executor(masked, absorbed);
    return MeasureMaskedBorder(executor, executor, BorderOptions(positions, index_topk)).until;
  };
  // Masked always slower; always faster; a crossing further away than there is room.
  CHECK(until({.us = 90, .us_per_key = 0.1}, {.us = 50, .us_per_key = 0}, 16'384, 2048) == 0);
  CHECK(until({.us = 20, .us_per_key = 0}, {.us = 50, .us_per_key = 0.01}, 16'384, 2048) == 16'384);
  CHECK(until({.us = 20, .us_per_key = 0.001}, {.us = 50, .us_per_key = 0}, 16'384, 2048) ==
        16'384);
  CHECK(until({.us = 60, .us_per_key = 0}, {.us = 50, .us_per_key = 0.001}, 16'384, 2048) == 0);
  // Room that is no multiple; a crossing before the first row that selects.
  CHECK(until({.us = 20, .us_per_key = 0}, {.us = 50, .us_per_key = 0}, 6'000, 2048) == 5 * 1024);
  CHECK(until({.us = 40, .us_per_key = 0.05}, {.us = 100, .us_per_key = 0}, 16'384, 2048) == 1024);
  // Too few positions to tell.
  CHECK(until({.us = 20, .us_per_key = 0}, {.us = 50, .us_per_key = 0}, 4'000, 2048) == 0);
  CHECK(until({.us = 20, .us_per_key = 0}, {.us = 50, .us_per_key = 0}, 100, 0) == 0);
  // Without a selection masked attention is compared with dense.
  TimedExecutor dense({.us = 10, .us_per_key = 0.01}, {.us = 1, .us_per_key = 0.02});
  CHECK(MeasureMaskedBorder(dense, dense, BorderOptions(16'384, 0)).until == 0);
  CHECK(dense.selecting == 0);
}

TEST_CASE("what is measured at start leaves nothing behind", "[model][masked_border]") {
  const std::string name = GENERATE(as<std::string>(), "v32_fp8", "v3_fp8");
  CpuBackend of_plain(2);
  CpuBackend of_measured(2);
  TestModel model(CheckpointFolder(name, FindGoldenCase(name).options), of_plain);
  RunOptions options;
  options.kv_format = model.config.default_kv_format();
  options.step_tokens_max = 32;
  options.context_max = 1280;
  options.masked_until = 1280;
  SequenceRequest request;
  for (std::int32_t i = 0; i < 150; ++i) {
    request.prompt.push_back((i * 37 + i * i * 11) % 119);
  }
  request.max_tokens = 8;
  double masked_per_s = 0;
  const auto make = [&](bool measures) {
    return [&, measures](const ModelExecutorConfig& config) -> std::unique_ptr<StepExecutor> {
      auto executor =
          ModelExecutor::Create(measures ? of_measured : of_plain, model.loaded(), config).value();
      if (measures) {
        const SteadyClock clock;
        masked_per_s =
            MeasureMaskedBorder(*executor, clock,
                                {.positions_max = options.masked_until,
                                 .rows_max = options.step_tokens_max,
                                 .context_max = options.context_max,
                                 .vocabulary = model.config.vocabulary,
                                 .attention = model.config.has_indexer() ? AttentionMode::kSparse
                                                                         : AttentionMode::kDense,
                                 .index_topk = model.config.index_topk})
                .far.masked_per_s;
      }
      return executor;
    };
  };
  SequenceRunner plain(make(false), model.config, options);
  const SequenceOutput expected = plain.Run({request}).front();
  SequenceRunner measured(make(true), model.config, options);
  const SequenceOutput actual = measured.Run({request}).front();
  CHECK(masked_per_s > 0);
  CHECK_FALSE(actual.faulty);
  CHECK(actual.ids == expected.ids);
  CHECK(actual.logits == expected.logits);
}

}  // namespace dsa::testing
