// The last line of a process that ends because something is wrong: to standard error, past the log,
// and never waiting for a reader that is stuck.
#pragma once

#include <string_view>

namespace dsa {

// `line` ends with a line feed.  Any thread; allocates nothing.  Waits at most a second for room.
void WriteLastLine(std::string_view line);

}  // namespace dsa
