// Where the sources and this build lie.  A function, not a macro in every test's command line, so
// that a compiler cache serves clones in other folders.
#pragma once

#include <string>
#include <string_view>

namespace dsa::testing {

// `path` below the root of the sources, or of the build: SourcePath("configs/server.json").
std::string SourcePath(std::string_view path);
std::string BuildPath(std::string_view path);

}  // namespace dsa::testing
