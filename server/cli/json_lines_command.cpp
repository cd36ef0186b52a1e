#include "server/cli/json_lines_command.h"

#include "server/cli/report.h"
#include "tokenizer/json_lines.h"

#include <cstdio>
#include <iostream>

namespace dsa {

int AnswerStandardInput(const std::function<Result<std::string>(std::string_view)>& answer) {
  constexpr int kBadInput = 2;
  bool written = true;
  const std::int64_t failed = AnswerLines(std::cin, answer, [&written](std::string_view line) {
    written = std::fwrite(line.data(), 1, line.size(), stdout) == line.size() && written;
    written = std::fputc('\n', stdout) != EOF && written;
    written = std::fflush(stdout) == 0 && written;  // a caller may wait for it before it goes on
    if (!written) {
      std::cin.setstate(std::ios::eofbit);  // nobody hears the other answers
    }
  });
  if (!written) {
    return 1;
  }
  if (std::cin.bad() || std::ferror(stdin) != 0) {
    return ReportError(InvalidArgument("standard input: cannot be read"));
  }
  return failed == 0 ? 0 : kBadInput;
}

}  // namespace dsa
