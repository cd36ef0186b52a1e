// The subcommands of `dsa`, one source file each.  Each adds itself to the command line; its
// callback stores the process's exit code (0 fine or drained, 2 bad input, file or configuration,
// 3 no device or memory, 1 anything else).
#pragma once

namespace CLI {  // NOLINT(readability-identifier-naming): the library's name
class App;
}

namespace dsa {

void AddServeCommand(CLI::App& app, int& exit_code);
void AddChatCommand(CLI::App& app, int& exit_code);
void AddGenerateCommand(CLI::App& app, int& exit_code);
void AddLogitsCommand(CLI::App& app, int& exit_code);
void AddTokenizeCommand(CLI::App& app, int& exit_code);
void AddRenderCommand(CLI::App& app, int& exit_code);
void AddInspectCommand(CLI::App& app, int& exit_code);
void AddHealthcheckCommand(CLI::App& app, int& exit_code);
// `dsa bench` and what can be measured, a source file each.
void AddBenchCommand(CLI::App& app, int& exit_code);
void AddBenchPositionCommand(CLI::App& bench, int& exit_code);
void AddBenchServeCommand(CLI::App& bench, int& exit_code);
void AddVersionCommand(CLI::App& app, int& exit_code);
void AddHelpCommand(CLI::App& app, int& exit_code);
void AddCompleteCommand(CLI::App& app, int& exit_code);
// Writes the small random checkpoint that `make demo` serves.
void AddMakeCheckpointCommand(CLI::App& app, int& exit_code);

}  // namespace dsa
