// The server's configuration: flags over a JSON file over defaults, no environment variables.  One
// list of keys serves the file, the flags, --help, --print-config and configs/README.md.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace dsa {

// What the field of an AutomaticIntValue holds for "auto".
inline constexpr std::int64_t kAutomatic = -1;

// What each key means is said once, in ConfigKeys().
struct ServerConfig {
  std::string model;
  std::string served_model_name;
  std::string tokenizer;
  std::string chat_format = "auto";
  std::string generation_config = "auto";
  std::string load = "checkpoint";
  std::string slice = "all";

  std::string device = "cpu";
  std::int64_t threads = 0;
  std::int64_t tensor_parallel_size = 1;
  std::int64_t data_parallel_size = 1;
  bool expert_parallel = false;
  std::string collectives = "auto";
  std::string attention = "sparse";
  std::int64_t masked_mha_until = kAutomatic;
  bool batch_invariant = false;

  std::string kv_cache_dtype = "auto";
  std::int64_t kv_cache_memory_bytes = 0;
  std::int64_t device_memory_reserve_bytes = std::int64_t{1} << 30;

  std::int64_t max_model_len = 0;
  std::int64_t max_num_seqs = 0;
  std::int64_t max_num_batched_tokens = 2048;
  std::int64_t step_time_target_ms = -1;
  std::int64_t max_queued_requests = 512;
  std::int64_t max_tokens_default = 32768;
  std::string scheduling_policy = "fcfs";
  std::string preemption = "recompute";
  std::int64_t price_per_hour_cents = 0;

  std::string listen = "127.0.0.1:50051";
  std::string http_listen;
  bool http_strict = false;
  bool insecure = false;
  std::int64_t max_message_bytes = std::int64_t{16} << 20;
  std::int64_t max_connections = 0;
  std::int64_t max_concurrent_streams = 1024;
  std::int64_t max_cancels_per_s = 100;
  std::int64_t shutdown_timeout_s = 30;
  std::int64_t stall_timeout_s = 60;

  std::string log_level = "info";
  std::string log_format = "auto";
};

struct TextValue {
  std::string ServerConfig::*field;
};
struct FormValue {
  std::string ServerConfig::*field;
  std::string_view allowed;  // in words
  bool (*accepts)(std::string_view text);
};
struct ChoiceValue {
  std::string ServerConfig::*field;
  std::vector<std::string> allowed;
};
struct IntValue {
  std::int64_t ServerConfig::*field;
  std::int64_t minimum;
  std::int64_t maximum;
};
// "auto", which is kAutomatic, or an integer.
struct AutomaticIntValue {
  std::int64_t ServerConfig::*field;
  std::int64_t minimum;  // >= 0
  std::int64_t maximum;
};
struct SwitchValue {
  bool ServerConfig::*field;
};

struct ConfigKey {
  std::string_view name;   // in the file; the flag has dashes instead: --max-num-seqs
  std::string_view group;  // the heading in --help and in configs/README.md
  std::string_view help;   // one sentence or two
  std::variant<TextValue, FormValue, ChoiceValue, IntValue, AutomaticIntValue, SwitchValue> value;
};

struct ListenAddress {
  std::string host;   // without brackets; "unix:/path" for a unix socket
  std::int64_t port;  // 0 for a unix socket
};
// "127.0.0.1:50051", "localhost:0", "[::1]:50051", "unix:/run/dsa.sock".
Result<ListenAddress> ParseListen(std::string_view text);
// As above; errors name `key`.
Result<ListenAddress> ParseListen(std::string_view text, std::string_view key);

// Every key, in the order of ServerConfig.
const std::vector<ConfigKey>& ConfigKeys();

// Puts the keys of a JSON file over `config`.  INVALID_ARGUMENT naming file, key, value and what is
// allowed; unknown keys are refused.
Status ReadConfigFile(const std::string& path, ServerConfig& config);

// Puts one value over `config`, from a flag's text; a switch takes "true" or "false".
Status SetFromFlag(const ConfigKey& key, std::string_view text, ServerConfig& config);

// Tensor ranks of all data ranks.
std::int64_t AllRanks(const ServerConfig& config);

// max_num_seqs, or what its 0 stands for; of each data rank.
std::int64_t SequencesMax(const ServerConfig& config);

// What holds between keys: a model is named, and an address beyond this machine is asked for by
// name.
Status Validate(const ServerConfig& config);

// All keys, as a file would hold them.
std::string ToJson(const ServerConfig& config);

// "key=value" of the keys that differ from the defaults, for the log.
std::string Differences(const ServerConfig& config);

// What values a key takes, in words: "[1, 65536]", "sparse, dense", "text", "true, false".
std::string AllowedValues(const ConfigKey& key);

// The value as in JSON.
std::string ValueText(const ConfigKey& key, const ServerConfig& config);

// "--max-num-seqs"
std::string FlagName(const ConfigKey& key);

}  // namespace dsa
