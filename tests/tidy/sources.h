// The C++ and CUDA sources of this repository, for the tests that read them.
#pragma once

#include "tests/tidy/rules.h"

#include <filesystem>
#include <string>
#include <vector>

namespace dsa::tidy {

std::string ReadText(const std::filesystem::path& path);
std::vector<Source> Sources();

}  // namespace dsa::tidy
