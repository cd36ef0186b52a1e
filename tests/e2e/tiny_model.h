// A small random checkpoint that the end-to-end tests share.
#pragma once

#include <string>

namespace dsa::testing {

// Selects 32 keys a query.  One folder a test process, since test processes run beside each other;
// written once, removed when the process ends.
const std::string& TinyModel();

inline constexpr int kTinyTopK = 32;
inline constexpr int kTinyVocabulary = 512;

}  // namespace dsa::testing
