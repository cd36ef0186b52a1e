// `dsa bench`: measurements, a subcommand each.
#include "server/cli/commands.h"

#include <CLI/CLI.hpp>

namespace dsa {

void AddBenchCommand(CLI::App& app, int& exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "Measure a server");
  bench->require_subcommand(1);
  AddBenchPositionCommand(*bench, exit_code);
  AddBenchServeCommand(*bench, exit_code);
}

}  // namespace dsa
