// What the files beside the weights say about text: tokenizer.json, tokenizer_config.json.
#pragma once

#include "common/status.h"
#include "model/model_config.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

#include <memory>
#include <optional>
#include <string>

namespace dsa {

struct ModelText {
  std::unique_ptr<Tokenizer> tokenizer;   // null: the model has none
  std::optional<ChatFormat> chat_format;  // nullopt: none known
  std::optional<TokenId> bos;
  bool add_bos = false;  // a raw text begins with bos
};

struct ModelTextOptions {
  std::string model_folder;
  std::string tokenizer_path;  // empty: tokenizer.json of the folder, where there is one
  std::string chat_format;     // "auto", "v3.2", "v3.1", "none"
};

// INVALID_ARGUMENT naming file, key, value and rule; a tokenizer larger than the model's
// vocabulary is refused.
Result<ModelText> LoadModelText(const ModelTextOptions& options, const ModelConfig& model);

}  // namespace dsa
