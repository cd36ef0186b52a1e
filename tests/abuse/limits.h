// What a full server and one that reads large texts do to those who ask them, measured.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace dsa::testing {

// "burst", "health" and what they start as processes of their own: an exit code; nullopt for other
// words.
std::optional<int> RunLimits(const std::vector<std::string>& words);

}  // namespace dsa::testing
