// `dsa tokenize`: the ids of texts, one JSON object a line.
#include "server/cli/commands.h"
#include "server/cli/json_lines_command.h"
#include "server/cli/report.h"
#include "tokenizer/json_lines.h"

#include <memory>
#include <string>

#include <CLI/CLI.hpp>

namespace dsa {
namespace {

struct TokenizeArguments {
  std::string tokenizer;
  bool special = false;
};

int RunTokenize(const TokenizeArguments& arguments) {
  const Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(arguments.tokenizer);
  if (!tokenizer.ok()) {
    return ReportError(tokenizer.error());
  }
  const AddedMatching matching = arguments.special ? AddedMatching::kOn : AddedMatching::kOff;
  return AnswerStandardInput(
      [&](std::string_view line) { return TokenizeLine(*tokenizer.value(), matching, line); });
}

}  // namespace

void AddTokenizeCommand(CLI::App& app, int& exit_code) {
  CLI::App* command =
      app.add_subcommand("tokenize", "Read JSON lines {\"text\": ...}, write {\"ids\": [...]}");
  auto arguments = std::make_shared<TokenizeArguments>();
  command->add_option("--tokenizer", arguments->tokenizer, "The tokenizer.json to use")->required();
  command->add_flag("--special", arguments->special,
                    "Match added tokens such as <｜User｜>; without it they are plain text");
  command->footer(
      "A line that is wrong is answered by {\"error\": ..., \"line\": N}; the exit code is then 2. "
      "Blank lines are skipped.");
  command->callback([arguments, &exit_code] { exit_code = RunTokenize(*arguments); });
}

}  // namespace dsa
