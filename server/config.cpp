#include "server/config.h"

#include "common/file.h"
#include "common/json.h"
#include "common/overloaded.h"
#include "server/device_name.h"

#include <algorithm>
#include <charconv>
#include <system_error>

#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

constexpr std::int64_t kFileBytesMax = std::int64_t{1} << 20;

// Assigns a Result's value or returns its error.
template <typename T>
Status Assign(T& target, Result<T> value) {
  if (!value.ok()) {
    return value.error();
  }
  target = std::move(value).value();
  return {};
}

constexpr std::string_view kAutomaticText = "auto";

Status ReadAutomatic(const AutomaticIntValue& value, std::string_view name, JsonObject& object,
                     ServerConfig& config) {
  DSA_ASSIGN_OR_RETURN(const Json* json, object.ReadAny(name));
  if (*json == Json(kAutomaticText)) {
    config.*value.field = kAutomatic;
    return {};
  }
  if (!json->is_number_integer()) {
    return object.MakeError(
        name, fmt::format("{} is not \"{}\" or an integer", Brief(*json), kAutomaticText));
  }
  return Assign(config.*value.field, object.ReadInt(name, value.minimum, value.maximum));
}

Status ReadKey(const ConfigKey& key, JsonObject& object, ServerConfig& config) {
  const std::string_view name = key.name;
  return std::visit(
      Overloaded{
          [&](const TextValue& v) { return Assign(config.*v.field, object.ReadString(name)); },
          [&](const FormValue& v) -> Status {
            DSA_RETURN_IF_ERROR(Assign(config.*v.field, object.ReadString(name)));
            const std::string& text = config.*v.field;
            if (!v.accepts(text)) {
              return InvalidArgument(
                  fmt::format("{}: \"{}\" is not one of {}", name, OneLine(text), v.allowed));
            }
            return {};
          },
          [&](const ChoiceValue& v) {
            return Assign(config.*v.field, object.ReadChoice(name, v.allowed));
          },
          [&](const IntValue& v) {
            return Assign(config.*v.field, object.ReadInt(name, v.minimum, v.maximum));
          },
          [&](const AutomaticIntValue& v) { return ReadAutomatic(v, name, object, config); },
          [&](const SwitchValue& v) { return Assign(config.*v.field, object.ReadBool(name)); },
      },
      key.value);
}

Json ToJsonValue(const ConfigKey& key, const ServerConfig& config) {
  return std::visit(Overloaded{
                        [&](const AutomaticIntValue& v) {
                          return config.*v.field == kAutomatic ? Json(kAutomaticText)
                                                               : Json(config.*v.field);
                        },
                        [&](const auto& v) { return Json(config.*v.field); },
                    },
                    key.value);
}

// False, and `value` is as it was, where the text is no integer in [minimum, maximum].
bool ParseInt(std::string_view text, std::int64_t minimum, std::int64_t maximum,
              std::int64_t& value) {
  std::int64_t parsed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (error != std::errc() || end != text.data() + text.size() || parsed < minimum ||
      parsed > maximum) {
    return false;
  }
  value = parsed;
  return true;
}

// The log and --print-config are JSON, which holds no other text.
bool IsUtf8(std::string_view text) {
  using Handler = Json::error_handler_t;
  const Json value = std::string(text);
  return value.dump(-1, ' ', false, Handler::ignore) ==
         value.dump(-1, ' ', false, Handler::replace);
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.") ||
         host.starts_with("unix:");
}

Status CheckListen(const std::string& listen, std::string_view key, const ServerConfig& config) {
  DSA_ASSIGN_OR_RETURN(const ListenAddress address, ParseListen(listen, key));
  if (!IsLoopback(address.host) && !config.insecure) {
    return InvalidArgument(
        fmt::format("{}: \"{}\" reaches beyond this machine: say insecure too, since there is "
                    "neither encryption nor authentication",
                    key, listen));
  }
  return {};
}

Status CheckCollectives(const ServerConfig& config, bool is_cpu) {
  if (config.collectives != "auto" && (is_cpu || AllRanks(config) == 1)) {
    return InvalidArgument(fmt::format(
        "collectives: \"{}\" of {} on device \"{}\": only several ranks on CUDA have "
        "a choice; auto otherwise",
        config.collectives, AllRanks(config) == 1 ? "one rank" : "ranks", config.device));
  }
  if (config.collectives == "nccl" && config.data_parallel_size > 1) {
    return InvalidArgument(
        fmt::format("collectives: \"nccl\" with data_parallel_size: {}: data ranks exchange rows "
                    "in memory that all see; auto or peer",
                    config.data_parallel_size));
  }
  return {};
}

// What ranks need of each other; the model has a say too (CheckRanks).
Status CheckLayout(const ServerConfig& config) {
  if (config.expert_parallel && AllRanks(config) == 1) {
    return InvalidArgument(
        "expert_parallel: true with tensor_parallel_size: 1: one rank holds every expert; it is "
        "false, or there are more ranks");
  }
  if (config.data_parallel_size > 1 && !config.expert_parallel) {
    return InvalidArgument(fmt::format(
        "data_parallel_size: {} without expert_parallel: data ranks share the routed experts, and "
        "nothing else; say expert_parallel too, or data_parallel_size: 1",
        config.data_parallel_size));
  }
  const std::optional<DeviceName> device = ParseDevice(config.device);
  DSA_RETURN_IF_ERROR(CheckCollectives(config, device && device->kind == DeviceKind::kCpu));
  constexpr std::int64_t kRanksMax = 64;
  if (AllRanks(config) > kRanksMax) {
    return InvalidArgument(fmt::format(
        "data_parallel_size: {} of tensor_parallel_size: {} are {} ranks, at most {}",
        config.data_parallel_size, config.tensor_parallel_size, AllRanks(config), kRanksMax));
  }
  return {};
}

// Devices that are named are as many as there are ranks.
Status CheckDeviceCount(const ServerConfig& config) {
  const std::optional<DeviceName> device = ParseDevice(config.device);
  const auto named = static_cast<std::int64_t>(device ? device->indices.size() : 0);
  if (named > 0 && named != AllRanks(config)) {
    const std::string ranks =
        config.data_parallel_size == 1
            ? fmt::format("tensor_parallel_size is {}", config.tensor_parallel_size)
            : fmt::format("tensor_parallel_size {} of data_parallel_size {} are {} ranks",
                          config.tensor_parallel_size, config.data_parallel_size, AllRanks(config));
    return InvalidArgument(
        fmt::format("device: \"{}\" names {}, but {}: as many devices as ranks, or cuda for the "
                    "first ones",
                    config.device, named, ranks));
  }
  return {};
}

}  // namespace

Result<ListenAddress> ParseListen(std::string_view text) {
  return ParseListen(text, "listen");
}

Result<ListenAddress> ParseListen(std::string_view text, std::string_view key) {
  constexpr std::int64_t kPortMax = 65535;
  const auto refuse = [&] {
    return InvalidArgument(fmt::format(
        "{}: \"{}\" is not HOST:PORT with a port in [0, {}], nor unix:/PATH", key, text, kPortMax));
  };
  if (text.starts_with("unix:/")) {
    return ListenAddress{.host = std::string(text), .port = 0};
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return refuse();
  }
  std::string_view host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return refuse();  // IPv6 without brackets
  }
  const std::string_view digits = text.substr(colon + 1);
  std::int64_t port = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (host.empty() || error != std::errc() || end != digits.data() + digits.size() || port < 0 ||
      port > kPortMax) {
    return refuse();
  }
  return ListenAddress{.host = std::string(host), .port = port};
}

Status ReadConfigFile(const std::string& path, ServerConfig& config) {
  DSA_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  DSA_ASSIGN_OR_RETURN(const Json document, ParseJson(text, path));
  DSA_ASSIGN_OR_RETURN(JsonObject object, JsonObject::From(document, path, ""));
  for (const ConfigKey& key : ConfigKeys()) {
    if (document.contains(std::string(key.name))) {
      DSA_RETURN_IF_ERROR(ReadKey(key, object, config));
    }
  }
  return object.CheckAllRead();
}

Status SetFromFlag(const ConfigKey& key, std::string_view text, ServerConfig& config) {
  const auto refuse = [&](std::string_view allowed) {
    return Status(
        InvalidArgument(fmt::format("{}: \"{}\" is not {}", FlagName(key), text, allowed)));
  };
  return std::visit(
      Overloaded{
          [&](const TextValue& v) {
            if (!IsUtf8(text)) {
              return Status(InvalidArgument(
                  fmt::format("{}: \"{}\" is not UTF-8", FlagName(key), OneLine(text))));
            }
            config.*v.field = std::string(text);
            return Status();
          },
          [&](const FormValue& v) {
            if (!v.accepts(text)) {
              return refuse(fmt::format("one of {}", v.allowed));
            }
            config.*v.field = std::string(text);
            return Status();
          },
          [&](const ChoiceValue& v) {
            if (std::find(v.allowed.begin(), v.allowed.end(), text) == v.allowed.end()) {
              return refuse("one of " + AllowedValues(key));
            }
            config.*v.field = std::string(text);
            return Status();
          },
          [&](const IntValue& v) {
            if (!ParseInt(text, v.minimum, v.maximum, config.*v.field)) {
              return refuse("an integer in " + AllowedValues(key));
            }
            return Status();
          },
          [&](const AutomaticIntValue& v) {
            if (text == kAutomaticText) {
              config.*v.field = kAutomatic;
              return Status();
            }
            if (!ParseInt(text, v.minimum, v.maximum, config.*v.field)) {
              return refuse(AllowedValues(key));
            }
            return Status();
          },
          [&](const SwitchValue& v) {
            if (text != "true" && text != "false") {
              return refuse("true or false");
            }
            config.*v.field = text == "true";
            return Status();
          },
      },
      key.value);
}

std::int64_t AllRanks(const ServerConfig& config) {
  return config.tensor_parallel_size * config.data_parallel_size;
}

std::int64_t SequencesMax(const ServerConfig& config) {
  constexpr std::int64_t kDefault = 256;
  return config.max_num_seqs > 0 ? config.max_num_seqs
                                 : std::min(kDefault, config.max_num_batched_tokens);
}

Status Validate(const ServerConfig& config) {
  if (config.model.empty()) {
    return InvalidArgument("model: missing: the directory of a checkpoint");
  }
  DSA_RETURN_IF_ERROR(CheckListen(config.listen, "listen", config));
  if (!config.http_listen.empty()) {
    DSA_RETURN_IF_ERROR(CheckListen(config.http_listen, "http_listen", config));
  }
  DSA_RETURN_IF_ERROR(CheckDeviceCount(config));
  DSA_RETURN_IF_ERROR(CheckLayout(config));
  if (config.max_num_batched_tokens < SequencesMax(config)) {
    return InvalidArgument(fmt::format("max_num_batched_tokens: {} is below max_num_seqs: {}",
                                       config.max_num_batched_tokens, config.max_num_seqs));
  }
  return {};
}

std::string ToJson(const ServerConfig& config) {
  Json document = Json::object();
  for (const ConfigKey& key : ConfigKeys()) {
    document[std::string(key.name)] = ToJsonValue(key, config);
  }
  return document.dump(2);
}

std::string Differences(const ServerConfig& config) {
  const ServerConfig defaults;
  std::vector<std::string> differing;
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string value = ValueText(key, config);
    if (value != ValueText(key, defaults)) {
      differing.push_back(fmt::format("{}={}", key.name, value));
    }
  }
  return fmt::format("{}", fmt::join(differing, " "));
}

std::string AllowedValues(const ConfigKey& key) {
  return std::visit(
      Overloaded{
          [](const TextValue&) { return std::string("text"); },
          [](const FormValue& v) { return std::string(v.allowed); },
          [](const ChoiceValue& v) { return fmt::format("{}", fmt::join(v.allowed, ", ")); },
          [](const IntValue& v) { return fmt::format("[{}, {}]", v.minimum, v.maximum); },
          [](const AutomaticIntValue& v) {
            return fmt::format("{} or an integer in [{}, {}]", kAutomaticText, v.minimum,
                               v.maximum);
          },
          [](const SwitchValue&) { return std::string("true, false"); },
      },
      key.value);
}

std::string ValueText(const ConfigKey& key, const ServerConfig& config) {
  return ToJsonValue(key, config).dump();
}

std::string FlagName(const ConfigKey& key) {
  std::string flag = "--" + std::string(key.name);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

}  // namespace dsa
