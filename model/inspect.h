// The report of `dsa inspect`: what a checkpoint is, what it costs and what is wrong with it.
#pragma once

#include "common/status.h"
#include "model/model_config.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace dsa {

// 1'234'567 -> "1.23 MB" for a unit of "B"; prefixes of 1000.
std::string Amount(std::int64_t value, std::string_view unit);

// Text of several lines, ending in a newline.  Reads headers and scales, neither the weights nor
// the tokenizer.  The error of a broken checkpoint is one line, as LoadWeights and Checkpoint::Open
// give it.
Result<std::string> InspectCheckpoint(const std::string& folder,
                                      GenerationFile generation = GenerationFile::kRead);

}  // namespace dsa
