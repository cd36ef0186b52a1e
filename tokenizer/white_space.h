// Unicode's White_Space at the ends of a text: what an added token with lstrip or rstrip takes with
// it.  Pure functions; thread-safe.
#pragma once

#include <cstddef>
#include <string_view>

namespace dsa {

// The bytes of the white space that `text` begins with.
std::size_t LeadingSpaceBytes(std::string_view text);
// ... and that it ends with.
std::size_t TrailingSpaceBytes(std::string_view text);

}  // namespace dsa
