// `dsa inspect`: what a checkpoint is, what it costs and what is wrong with it.
#include "model/inspect.h"

#include "server/cli/commands.h"
#include "server/cli/config_flags.h"
#include "server/cli/report.h"
#include "server/devices.h"
#include "server/model_files.h"
#include "server/model_source.h"
#include "server/sizing.h"

#include <cstdio>
#include <memory>
#include <string>

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
  DSA_ASSIGN_OR_RETURN(const RankBackends ranks, MakeRankBackends(config.device, config.threads,
                                                                  config.tensor_parallel_size));
  const Backend& backend = *ranks.backends.front();
  const ModelConfig& model = source.config();
  const Result<ServerSizes> sizes = SizeServer(
      config,
      {.config = model,
       .weight_bytes = [&](const RankLayout& layout) { return source.weight_bytes(layout); },
       .vocabulary_limit = static_cast<std::int32_t>(model.vocabulary)},
      backend);
  if (!sizes.ok() && sizes.error().code != ErrorCode::kFailedPrecondition) {
    return sizes.error();
  }
  return fmt::format("{:<16}{}, {}\n", "to serve", backend.Name(),
                     sizes.ok() ? ToText(sizes.value().memory) : sizes.error().message);
}

Result<std::string> Inspect(const ConfigFlags& flags) {
  DSA_ASSIGN_OR_RETURN(const ServerConfig config, ReadConfig(flags));
  DSA_RETURN_IF_ERROR(Validate(config));
  std::string report;
  if (ParseLoadMode(config.load) == LoadMode::kCheckpoint) {
    DSA_ASSIGN_OR_RETURN(
        report, InspectCheckpoint(config.model, ParseGenerationFile(config.generation_config)));
  }
  DSA_ASSIGN_OR_RETURN(const ModelSource source,
                       ModelSource::Open(config.model, ParseLoadMode(config.load),
                                         ParseGenerationFile(config.generation_config)));
  DSA_ASSIGN_OR_RETURN(const std::string text, TextReport(config, source.config()));
  DSA_ASSIGN_OR_RETURN(const std::string memory, MemoryToServe(config, source));
  return report + text + memory;
}

}  // namespace

void AddInspectCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "inspect", "Show a checkpoint's architecture, sizes, memory, defaults and problems");
  const auto flags = AddConfigFlags(*command);
  command->footer(
      "Reads headers and scales, not the weights.  The options are those of serve: the last line "
      "says what memory it would need with them.  A broken checkpoint: exit code 2.");
  command->callback([flags, &exit_code] {
    const Result<std::string> report = Inspect(*flags);
    if (!report.ok()) {
      exit_code = ReportError(report.error());
      return;
    }
    const std::string& text = report.value();
    exit_code = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() ? 0 : 1;
  });
}

}  // namespace dsa
