// `dsa help`: what --help prints, of the program or of a command.
#include "server/cli/commands.h"
#include "server/cli/report.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

int PrintHelp(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* command = &app;
  std::string name = app.get_name();
  for (const std::string& word : words) {
    const std::vector<std::string> below = CommandNames(*command);
    if (std::find(below.begin(), below.end(), word) == below.end()) {
      return ReportError(InvalidArgument(
          below.empty()
              ? fmt::format("{} has no commands below it", name)
              : fmt::format("\"{}\" is no command: allowed are {}", word, fmt::join(below, ", "))));
    }
    name += " " + word;
    command = command->get_subcommand(word);
  }
  // Its own help() would give that of the command which was parsed: this one.
  fmt::print("{}", command->get_formatter()->make_help(command, name, CLI::AppFormatMode::Normal));
  return 0;
}

}  // namespace

void AddHelpCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("help", "Show what a command does, as its --help");
  auto words = std::make_shared<std::vector<std::string>>();
  command->add_option("command", *words, "The command, such as serve, or bench serve");
  command->callback([&app, words, &exit_code] { exit_code = PrintHelp(app, *words); });
}

}  // namespace dsa
