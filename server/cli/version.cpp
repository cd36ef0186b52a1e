#include "server/cli/version.h"

#include "server/cli/commands.h"
#include "server/version.h"

#include <cstdio>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {

std::string VersionText() {
  return fmt::format("dsa {} ({}, {})", kVersion, kBackends, kBuildType);
}

void AddVersionCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("version", "Print the version and what was built in");
  command->callback([&exit_code] {
    fmt::print("{}\n", VersionText());
    exit_code = 0;
  });
}

}  // namespace dsa
