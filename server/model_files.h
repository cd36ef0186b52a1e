// What a model's folder says beside the weights: its name, and about text tokenizer.json,
// tokenizer_config.json and chat_template.jinja.
#pragma once

#include "common/status.h"
#include "model/model_config.h"
#include "tokenizer/chat_format.h"
#include "tokenizer/tokenizer.h"

#include <memory>
#include <optional>
#include <string>

namespace dsa {

struct ModelText {
  std::unique_ptr<Tokenizer> tokenizer;  // null: the model has none
  ChatFormatChoice chat;
  std::optional<TokenId> bos;
  bool add_bos = false;  // a raw text begins with bos
};

struct ModelTextOptions {
  std::string model_folder;
  std::string tokenizer_path;  // empty: tokenizer.json of the folder, where there is one
  std::string chat_format;     // "auto", "v3.2", "v3.1", "none"
};

// INVALID_ARGUMENT naming file, key, value and rule; a tokenizer larger than the model's
// vocabulary is refused, and a chat format that is asked for and whose tokens it lacks.
Result<ModelText> LoadModelText(const ModelTextOptions& options, const ModelConfig& model);

// The name of a folder, however it is written: of "/models/v3.2/" and, within it, of "." v3.2.
// Links keep theirs.  "model" where there is none, as of "/".
std::string ModelNameOf(const std::string& folder);

}  // namespace dsa
