#include "server/cli/config_flags.h"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {

std::shared_ptr<ConfigFlags> AddConfigFlags(CLI::App& command) {
  auto flags = std::make_shared<ConfigFlags>();
  command.add_option("--config", flags->config_file,
                     "JSON file with any of the keys below; flags win over it");
  const auto keep_model = [flags](const std::string& text) { flags->values["model"] = text; };
  CLI::Option* directory = command.add_option_function<std::string>(
      "directory", keep_model, "Directory of the checkpoint, as --model");
  const ServerConfig defaults;
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string name(key.name);
    const std::string help = fmt::format("{} Default: {}", key.help, ValueText(key, defaults));
    const auto keep = [flags, name](const std::string& text) { flags->values[name] = text; };
    CLI::Option* option = nullptr;
    if (std::holds_alternative<SwitchValue>(key.value)) {
      option = command.add_flag_callback(
          FlagName(key), [flags, name] { flags->values[name] = "true"; }, help);
    } else {
      option = command.add_option_function<std::string>(FlagName(key), keep, help);
      option->type_name(AllowedValues(key));
    }
    option->group(std::string(key.group));
    if (name == "model") {
      directory->excludes(option);
    }
  }
  return flags;
}

Result<ServerConfig> ReadConfig(const ConfigFlags& flags) {
  ServerConfig config;
  if (!flags.config_file.empty()) {
    DSA_RETURN_IF_ERROR(ReadConfigFile(flags.config_file, config));
  }
  for (const ConfigKey& key : ConfigKeys()) {
    const auto found = flags.values.find(std::string(key.name));
    if (found != flags.values.end()) {
      DSA_RETURN_IF_ERROR(SetFromFlag(key, found->second, config));
    }
  }
  return config;
}

}  // namespace dsa
