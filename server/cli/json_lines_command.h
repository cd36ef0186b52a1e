// What the commands that answer JSON lines share.
#pragma once

#include "common/status.h"

#include <functional>
#include <string>
#include <string_view>

namespace dsa {

// Answers standard input line by line on standard output.  Returns the exit code: 0, 2 where a line
// was wrong, or 1 where standard output could not be written.
int AnswerStandardInput(const std::function<Result<std::string>(std::string_view)>& answer);

}  // namespace dsa
