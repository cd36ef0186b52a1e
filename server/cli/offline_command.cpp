#include "server/cli/offline_command.h"

#include "common/file.h"
#include "model/model_slice.h"
#include "server/cli/report.h"
#include "server/device_name.h"
#include "server/devices.h"
#include "server/load_progress_bar.h"
#include "server/model_source.h"

#include <charconv>
#include <limits>
#include <system_error>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kIdsFileBytesMax = 64LL << 20;
constexpr std::size_t kQuotedBytesMax = 32;
constexpr std::string_view kBlanks = " \t\r\n";

Result<std::int32_t> ParseId(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kBlanks);
  const std::size_t last = text.find_last_not_of(kBlanks);
  std::string_view digits;
  if (first != std::string_view::npos) {
    digits = text.substr(first, last - first + 1);
  }
  std::int32_t id = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), id);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() || id < 0) {
    return InvalidArgument(fmt::format("--ids: '{}' is not a token id (a number from 0 to {})",
                                       digits.substr(0, kQuotedBytesMax),
                                       std::numeric_limits<std::int32_t>::max()));
  }
  return id;
}

Result<KvFormat> ParseKvFormat(const std::string& name, const ModelConfig& config) {
  if (name == "auto") {
    return config.default_kv_format();
  }
  if (name == "fp8") {
    return KvFormat::kFp8;
  }
  return name == "bf16" ? KvFormat::kBf16 : KvFormat::kF32;
}

CLI::Validator DeviceValidator() {
  return {[](std::string& text) {
            return ParseDevice(text) ? std::string()
                                     : fmt::format("\"{}\" is not one of {}", text, kDeviceNames);
          },
          std::string(kDeviceNames)};
}

}  // namespace

Result<std::vector<TokenId>> ParseIds(const std::string& text) {
  std::string list = text;
  if (text.starts_with('@')) {
    DSA_ASSIGN_OR_RETURN(list, ReadFile(text.substr(1), kIdsFileBytesMax));
  }
  std::vector<TokenId> ids;
  std::string_view rest = list;
  while (true) {
    const std::size_t comma = rest.find(',');
    DSA_ASSIGN_OR_RETURN(const std::int32_t id, ParseId(rest.substr(0, comma)));
    ids.push_back(TokenId{id});
    if (comma == std::string_view::npos) {
      return ids;
    }
    rest.remove_prefix(comma + 1);
  }
}

void AddOfflineOptions(CLI::App& command, OfflineArguments& arguments) {
  command.add_option("--model", arguments.model, "Folder with config.json and *.safetensors")
      ->required();
  command.add_option("--ids", arguments.ids, "The prompt: 5,17,3 or @FILE with the same")
      ->required();
  command
      .add_option("--load", arguments.load,
                  "checkpoint; or dummy: random weights, for which config.json is enough")
      ->check(CLI::IsMember({"checkpoint", "dummy"}))
      ->capture_default_str();
  command
      .add_option("--slice", arguments.slice,
                  fmt::format("A part of the model, with --load dummy: {}", kModelSlices))
      ->capture_default_str();
  command
      .add_option("--generation-config", arguments.generation_config,
                  "none: as if the checkpoint had no generation_config.json")
      ->check(CLI::IsMember({"auto", "none"}))
      ->capture_default_str();
  command.add_option("--device", arguments.device, "Where to run")
      ->check(DeviceValidator())
      ->capture_default_str();
  command
      .add_option("--kv-cache-dtype", arguments.kv_cache_dtype,
                  "How the caches store keys; auto follows the checkpoint")
      ->check(CLI::IsMember({"auto", "fp8", "bf16", "f32"}))
      ->capture_default_str();
  command
      .add_option("--attention", arguments.attention,
                  "sparse selects index_topk keys; dense reads all of them")
      ->check(CLI::IsMember({"sparse", "dense"}))
      ->capture_default_str();
  command
      .add_option("--max-num-batched-tokens", arguments.max_num_batched_tokens,
                  "Tokens of one step: a longer prompt is computed in chunks")
      ->check(WholeNumber())
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  command
      .add_option("--masked-mha-until", arguments.masked_mha_until,
                  "Prompt positions below take the masked attention path; 0: none")
      ->check(WholeNumber())
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 31))
      ->capture_default_str();
  command
      .add_option("--threads", arguments.threads,
                  "CPU threads; 0: one for every CPU that the process may use")
      ->check(WholeNumber())
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

Result<OfflineResult> RunOfflineCommand(
    const OfflineArguments& arguments,
    const std::function<Request(const ModelConfig& config)>& make_request,
    std::int64_t& vocabulary) {
  DSA_ASSIGN_OR_RETURN(std::vector<TokenId> ids, ParseIds(arguments.ids));
  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                       MakeBackend(arguments.device, arguments.threads));
  DSA_ASSIGN_OR_RETURN(
      const ModelSource source,
      ModelSource::Open(arguments.model, ParseLoadMode(arguments.load),
                        ParseGenerationFile(arguments.generation_config), arguments.slice));
  const ModelConfig& config = source.config();
  DSA_ASSIGN_OR_RETURN(const KvFormat kv_format, ParseKvFormat(arguments.kv_cache_dtype, config));
  LoadProgressBar progress;
  DSA_ASSIGN_OR_RETURN(const DeviceWeights loaded, source.Load(*backend, progress));
  vocabulary = config.vocabulary;
  Request request = make_request(config);
  request.prompt = std::move(ids);
  return RunOffline(
      *backend, {.config = config, .weights = loaded.weights},
      {.kv_format = kv_format,
       .attention = arguments.attention == "dense" ? AttentionMode::kDense : AttentionMode::kSparse,
       .step_tokens_max = arguments.max_num_batched_tokens,
       .masked_mha_until = arguments.masked_mha_until},
      std::move(request));
}

}  // namespace dsa
