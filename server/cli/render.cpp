// `dsa render`: the prompts of conversations, one JSON object a line.
#include "server/cli/commands.h"
#include "server/cli/json_lines_command.h"
#include "tokenizer/chat_format.h"
#include "tokenizer/json_lines.h"

#include <memory>
#include <string>

#include <CLI/CLI.hpp>

namespace dsa {

void AddRenderCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "render",
      "Read JSON lines {\"messages\": [...], \"thinking\": bool}, write {\"prompt\": ...}");
  auto name = std::make_shared<std::string>();
  command->add_option("--chat-format", *name, "v3.2, or v3.1 for V3.1, V3.1-Terminus and V3.2-Exp")
      ->required()
      ->check(CLI::IsMember({"v3.2", "v3.1"}));
  command->footer(
      "A line that is wrong is answered by {\"error\": ..., \"line\": N}; the exit code is then 2. "
      "Blank lines are skipped.");
  command->callback([name, &exit_code] {
    const ChatFormat format = ParseChatFormat(*name).value();
    exit_code =
        AnswerStandardInput([format](std::string_view line) { return RenderLine(format, line); });
  });
}

}  // namespace dsa
