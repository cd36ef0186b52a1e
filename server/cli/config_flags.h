// The server's configuration on the command line: one flag a key, over a file, over defaults.
#pragma once

#include "common/status.h"
#include "server/config.h"

#include <map>
#include <memory>
#include <string>

namespace CLI {  // NOLINT(readability-identifier-naming): the library's name
class App;
}

namespace dsa {

// What the command line said.  Outlives the parse.
struct ConfigFlags {
  std::string config_file;
  std::map<std::string, std::string> values;  // by key
};

// Adds --config, one option a key, and the model's directory without any flag.
std::shared_ptr<ConfigFlags> AddConfigFlags(CLI::App& command);

// After the parse.
Result<ServerConfig> ReadConfig(const ConfigFlags& flags);

}  // namespace dsa
