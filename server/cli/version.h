// What `dsa version` and `dsa --version` print.
#pragma once

#include <string>

namespace dsa {

// One line without its end: the version, the backends and the kind of build.
std::string VersionText();

}  // namespace dsa
