// Text from elsewhere on its way to a terminal.
#pragma once

#include <string>
#include <string_view>

namespace dsa {

// `text`, which is UTF-8, with every control character but tab and line feed shown as a picture of
// itself, so that it moves no cursor, renames no window and answers no query.
std::string WithoutControls(std::string_view text);

// The text as it is, or WithoutControls where `descriptor` is a terminal and not `raw`.
std::string ForDescriptor(std::string_view text, int descriptor, bool raw);

}  // namespace dsa
