// The program `dsa`: one subcommand a source file in cli/.
#include "common/log.h"
#include "server/cli/commands.h"

#include <array>

#include <CLI/CLI.hpp>

namespace {

using AddCommand = void (*)(CLI::App&, int&);

// In the order that --help shows.
constexpr std::array kCommands = {
    AddCommand{dsa::AddServeCommand},       AddCommand{dsa::AddChatCommand},
    AddCommand{dsa::AddGenerateCommand},    AddCommand{dsa::AddLogitsCommand},
    AddCommand{dsa::AddTokenizeCommand},    AddCommand{dsa::AddRenderCommand},
    AddCommand{dsa::AddInspectCommand},     AddCommand{dsa::AddMakeCheckpointCommand},
    AddCommand{dsa::AddHealthcheckCommand}, AddCommand{dsa::AddVersionCommand},
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A server for DeepSeek-V3.2 models: chat and completion over gRPC.", "dsa");
  app.require_subcommand(1);
  app.footer("Run `dsa COMMAND --help` for the options of a command.");
  int exit_code = 0;
  for (const AddCommand add : kCommands) {
    add(app, exit_code);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    constexpr int kBadInput = 2;
    return app.exit(error) == 0 ? 0 : kBadInput;
  }
  dsa::FlushLog();
  return exit_code;
}
