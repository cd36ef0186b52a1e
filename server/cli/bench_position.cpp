// `dsa bench position`: what a token costs against its position.
#include "common/clock.h"
#include "model/model_slice.h"
#include "server/bench/position_bench.h"
#include "server/cli/commands.h"
#include "server/cli/interrupt_flag.h"
#include "server/cli/report.h"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kPositionMax = std::int64_t{1} << 24;
constexpr std::int64_t kRowsMax = std::int64_t{1} << 20;

int RunPosition(const bench::PositionOptions& options) {
  const auto result = bench::MeasurePositions(options, SteadyClock(), InterruptFlag());
  if (!result.ok()) {
    return ReportError(result.error());
  }
  const Status written = bench::WritePositions(options, result.value());
  if (!written.ok()) {
    return ReportError(written.error());
  }
  if (InterruptFlag().load(std::memory_order_relaxed)) {
    fmt::print(stderr, "interrupted: what was measured is in {}\n", options.output);
    return kInterruptedExitCode;
  }
  return 0;
}

}  // namespace

void AddBenchPositionCommand(CLI::App& bench, int& exit_code) {
  CLI::App* command = bench.add_subcommand(
      "position", "Measure what a token costs at each position, DSA and dense");
  auto options = std::make_shared<bench::PositionOptions>();
  auto load = std::make_shared<std::string>("checkpoint");
  command->add_option("--model", options->model, "Folder with config.json and *.safetensors")
      ->required();
  command
      ->add_option("--load", *load,
                   "checkpoint; or dummy: random weights, for which config.json is enough")
      ->check(CLI::IsMember({"checkpoint", "dummy"}))
      ->capture_default_str();
  command
      ->add_option("--slice", options->slice,
                   fmt::format("A part of the model, with --load dummy: {}; costs of N layers are "
                               "scaled to all, too",
                               kModelSlices))
      ->capture_default_str();
  command->add_flag("--dense-keeps-index", options->dense_keeps_index,
                    "The dense curve is that of attention: dense, which still writes index keys, "
                    "instead of the twin's without indexer");
  command->add_option("--device", options->device, "Where to run: cpu or cuda")
      ->check(NotEmpty())
      ->capture_default_str();
  command->add_option("--threads", options->threads, "CPU threads; 0: all that it may use")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1024}))
      ->capture_default_str();
  command->add_flag("--quick", options->quick, "Fewer positions and repeats");
  command->add_option("--positions", options->positions, "Which ones: 0,2048,8192")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{0}, kPositionMax));
  command
      ->add_option("--max-position", options->position_max,
                   "The last one; without it the model's, at most 131072")
      ->check(CLI::Range(std::int64_t{1}, kPositionMax));
  command->add_option("--batch", options->batch, "Sequences of the fixed decode batch")
      ->check(CLI::Range(std::int64_t{1}, kRowsMax))
      ->capture_default_str();
  command
      ->add_option(
          "--max-batch", options->batch_max,
          "The largest decode batch that is tried: less where caches do not fit at the last "
          "position; without it 4 on a CPU, else 256")
      ->check(CLI::Range(std::int64_t{1}, kRowsMax));
  command
      ->add_option("--chunk", options->chunk_tokens,
                   "Rows of a prefill step, whole blocks of 64; without it 64 on a CPU, else 2048")
      ->check(CLI::Range(std::int64_t{1}, kRowsMax));
  command
      ->add_option("--masked-mha-until", options->masked_until,
                   "Prompt rows below take the masked attention path, and all of the dense twin's "
                   "where it is not 0; without it as a server measures it, on a CPU 0")
      ->check(CLI::Range(std::int64_t{0}, kPositionMax));
  command->add_option("--gpu-hour-usd", options->gpu_hour_usd, "Price of the device for an hour")
      ->check(FiniteIn(1e-6, 1e6))
      ->capture_default_str();
  command->add_option("--commit", options->commit, "Commit that was measured, for the files");
  command->add_option("--output", options->output, "Folder for the files")
      ->required()
      ->check(NotEmpty());
  command->callback([options, load, &exit_code] {
    options->load = ParseLoadMode(*load);
    exit_code = RunPosition(*options);
  });
}

}  // namespace dsa
