// `dsa inspect`: what a checkpoint is, what it costs and what is wrong with it.
#include "model/inspect.h"

#include "server/cli/commands.h"
#include "server/cli/config_flags.h"
#include "server/cli/report.h"
#include "server/devices.h"
#include "server/gpu_layouts.h"
#include "server/model_files.h"
#include "server/model_source.h"
#include "server/sizing.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

// The tokenizer and how conversations become prompts, with the reason.
Result<std::string> TextReport(const ServerConfig& config, const ModelConfig& model) {
  DSA_ASSIGN_OR_RETURN(const ModelText text, LoadModelText({.model_folder = config.model,
                                                            .tokenizer_path = config.tokenizer,
                                                            .chat_format = config.chat_format},
                                                           model));
  if (text.tokenizer == nullptr) {
    return fmt::format("{:<16}none: token ids only\n", "tokenizer");
  }
  return fmt::format("{:<16}{} ids; a text begins {} begin-of-sentence\n{:<16}{}: {}\n",
                     "tokenizer", text.tokenizer->size(), text.add_bos ? "with" : "without",
                     "chat format", text.chat.format ? ToString(*text.chat.format) : "none",
                     text.chat.reason);
}

// What `dsa serve` would need with this configuration; that there is not enough is an answer too.
Result<std::string> MemoryToServe(const ServerConfig& config, const ModelSource& source) {
  DSA_ASSIGN_OR_RETURN(
      const RankBackends ranks,
      MakeRankBackends(config.device, config.threads, LayoutOf(config), config.collectives));
  std::vector<Backend*> backends;
  for (const std::unique_ptr<Backend>& backend : ranks.backends) {
    backends.push_back(backend.get());
  }
  const ModelConfig& model = source.config();
  const Result<ServerSizes> sizes = SizeServer(
      config,
      {.config = model,
       .weight_bytes = [&](const RankPlace& place) { return source.weight_bytes(place); },
       .vocabulary_limit = static_cast<std::int32_t>(model.vocabulary)},
      backends);
  if (!sizes.ok() && sizes.error().code != ErrorCode::kFailedPrecondition) {
    return sizes.error();
  }
  const std::string collectives =
      ranks.collectives.empty() ? "" : fmt::format("{:<16}{}\n", "collectives", ranks.collectives);
  return collectives +
         fmt::format("{:<16}{}, {}\n", "to serve", backends.front()->Name(),
                     sizes.ok() ? ToText(sizes.value().memory) : sizes.error().message);
}

// What the flags say of GPUs; 0 where they say nothing.
Status CheckGpus(const Gpus& gpus) {
  if ((gpus.count == 0) != (gpus.memory_bytes == 0)) {
    return InvalidArgument("--gpus and --gpu-memory: both or none, each above 0");
  }
  return {};
}

Result<std::string> Inspect(const ConfigFlags& flags, const Gpus& gpus) {
  DSA_RETURN_IF_ERROR(CheckGpus(gpus));
  DSA_ASSIGN_OR_RETURN(const ServerConfig config, ReadConfig(flags));
  DSA_RETURN_IF_ERROR(Validate(config));
  std::string report;
  if (ParseLoadMode(config.load) == LoadMode::kCheckpoint) {
    DSA_ASSIGN_OR_RETURN(
        report, InspectCheckpoint(config.model, ParseGenerationFile(config.generation_config)));
  }
  DSA_ASSIGN_OR_RETURN(
      const ModelSource source,
      ModelSource::Open(config.model, ParseLoadMode(config.load),
                        ParseGenerationFile(config.generation_config), config.slice));
  DSA_ASSIGN_OR_RETURN(const std::string text, TextReport(config, source.config()));
  DSA_ASSIGN_OR_RETURN(const std::string memory, MemoryToServe(config, source));
  std::string layouts;
  if (gpus.count > 0) {
    DSA_ASSIGN_OR_RETURN(layouts, DescribeGpuLayouts(config, source, gpus));
  }
  return report + text + memory + layouts;
}

}  // namespace

void AddInspectCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "inspect", "Show a checkpoint's architecture, sizes, memory, defaults and problems");
  const auto flags = AddConfigFlags(*command);
  const auto gpus = std::make_shared<Gpus>(Gpus{.count = 0, .memory_bytes = 0});
  constexpr std::int64_t kGpusMax = 64;
  constexpr std::int64_t kMemoryMax = std::int64_t{1} << 50;
  command
      ->add_option("--gpus", gpus->count,
                   "Say too what each of so many GPUs would hold, and for how many sequences there "
                   "is room; none is needed")
      ->check(CLI::Range(std::int64_t{1}, kGpusMax));
  command->add_option("--gpu-memory", gpus->memory_bytes, "Bytes of each of these GPUs")
      ->check(CLI::Range(std::int64_t{1}, kMemoryMax));
  command->footer(
      "Reads headers and scales, not the weights.  The options are those of serve: the last line "
      "says what memory it would need with them.  A broken checkpoint: exit code 2.");
  command->callback([flags, gpus, &exit_code] {
    const Result<std::string> report = Inspect(*flags, *gpus);
    if (!report.ok()) {
      exit_code = ReportError(report.error());
      return;
    }
    const std::string& text = report.value();
    exit_code = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() ? 0 : 1;
  });
}

}  // namespace dsa
