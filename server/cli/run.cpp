#include "server/cli/run.h"

#include "common/log.h"
#include "server/cli/commands.h"
#include "server/cli/report.h"
#include "server/cli/standard_output.h"
#include "server/cli/version.h"

#include <array>
#include <csignal>

#include <CLI/CLI.hpp>

namespace dsa {
namespace {

using AddCommand = void (*)(CLI::App&, int&);

// In the order that --help shows.
constexpr std::array kCommands = {
    AddCommand{AddServeCommand},          AddCommand{AddChatCommand},
    AddCommand{AddCompleteCommand},       AddCommand{AddGenerateCommand},
    AddCommand{AddLogitsCommand},         AddCommand{AddTokenizeCommand},
    AddCommand{AddRenderCommand},         AddCommand{AddInspectCommand},
    AddCommand{AddMakeCheckpointCommand}, AddCommand{AddBenchCommand},
    AddCommand{AddHealthcheckCommand},    AddCommand{AddVersionCommand},
    AddCommand{AddHelpCommand},
};

}  // namespace

int RunProgram(int argc, char** argv) {
  // A reader that is gone, and a file as large as it may be, are errors of the write, whoever
  // writes.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // With which other servers are told to open their logs again: by itself either ends a process.
  std::signal(SIGUSR1, SIG_IGN);
  std::signal(SIGUSR2, SIG_IGN);
  TakeStandardStreams();
  CLI::App app("A server for DeepSeek-V3.2 models: chat and completion over gRPC.", "dsa");
  app.require_subcommand(1);
  app.set_version_flag("--version", VersionText());
  app.footer("Run `dsa COMMAND --help` or `dsa help COMMAND` for the options of a command.");
  int exit_code = 0;
  for (const AddCommand add : kCommands) {
    add(app, exit_code);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    exit_code = ReportParseError(app, error);
  }
  FlushLog();
  return FlushOutput(exit_code);
}

}  // namespace dsa
