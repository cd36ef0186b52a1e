// What stands in a tokenizer.json around the vocabulary: normalizer, post-processor, decoder,
// truncation, padding.  Read by tokenizer_file.cpp alone.
#pragma once

#include "common/json.h"
#include "common/status.h"

#include <optional>
#include <string>

namespace dsa {

struct TokenizerSurroundings {
  // The added token that the post-processor puts in front of a text, "" for none; nullopt where the
  // file has no template.
  std::optional<std::string> prefix;
};

// Takes what does not change the ids of a text and the one prefix that may; INVALID_ARGUMENT naming
// anything else.  `source` opens the messages.
Result<TokenizerSurroundings> ReadTokenizerSurroundings(JsonObject& document,
                                                        const std::string& source);

// A key that may be absent or null; any other value must be one of `allowed`, which say the same.
Status ReadNeutral(JsonObject& object, std::string_view key, const std::vector<Json>& allowed);

}  // namespace dsa
