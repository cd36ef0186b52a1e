// What `dsa logits` and `dsa generate` share: the options that name a model, a device and a list
// of ids, and the run itself.
#pragma once

#include "common/status.h"
#include "model/model_config.h"
#include "scheduler/request.h"
#include "server/engine/offline.h"

#include <cstdint>
#include <functional>
#include <string>

namespace CLI {  // NOLINT(readability-identifier-naming): the library's name
class App;
}

namespace dsa {

// As given on the command line; unchecked beyond what the parser can check.
struct OfflineArguments {
  std::string model;
  std::string load = "checkpoint";
  std::string slice = "all";
  std::string generation_config = "auto";
  std::string device = "cpu";
  std::string ids;
  std::string kv_cache_dtype = "auto";
  std::string attention = "sparse";
  std::int64_t max_num_batched_tokens = 2048;
  std::int64_t masked_mha_until = 0;
  int threads = 0;  // 0: one for every CPU that the process may use
};

// Adds the options above to a command.
void AddOfflineOptions(CLI::App& command, OfflineArguments& arguments);

// Opens and loads the model, completes `request` with the ids and what `complete` sets from the
// model's configuration, and runs it.  `vocabulary` receives the model's.  Errors are one line.
Result<OfflineResult> RunOfflineCommand(
    const OfflineArguments& arguments,
    const std::function<Request(const ModelConfig& config)>& make_request,
    std::int64_t& vocabulary);

// "5,17,3", or "@FILE" with the same in a file, blanks and line ends allowed around the commas.
Result<std::vector<TokenId>> ParseIds(const std::string& text);

}  // namespace dsa
