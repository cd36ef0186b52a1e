#include "server/version.h"

#include "server/cli/commands.h"

#include <cstdio>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {

void AddVersionCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("version", "Print the version and what was built in");
  command->callback([&exit_code] {
    fmt::print("dsa {} ({}, {})\n", kVersion, kBackends, kBuildType);
    exit_code = 0;
  });
}

}  // namespace dsa
