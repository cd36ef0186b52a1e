#include "server/engine/text_decoder.h"

#include "tokenizer/tokenizer.h"

#include <algorithm>

namespace dsa {
namespace {

class TokenizerDecoder final : public TextDecoder {
 public:
  explicit TokenizerDecoder(const Tokenizer& tokenizer) : decoder_(tokenizer) {}
  void Push(TokenId id, std::string& out) override { decoder_.Push(id, out); }
  void PrefetchPlace(TokenId id) const override { decoder_.PrefetchPlace(id); }
  void Prefetch(TokenId id) const override { decoder_.Prefetch(id); }
  void Finish(std::string& out) override { decoder_.Finish(out); }

 private:
  IncrementalDecoder decoder_;
};

class TokenizerDecoderFactory final : public TextDecoderFactory {
 public:
  explicit TokenizerDecoderFactory(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    std::int64_t token_bytes_max = 0;
    for (std::int32_t id = 0; id < tokenizer.size(); ++id) {
      token_bytes_max = std::max<std::int64_t>(
          token_bytes_max, static_cast<std::int64_t>(tokenizer.Bytes(TokenId{id}).size()));
    }
    // Each byte of a token and of the three held back may become U+FFFD, of three bytes.
    text_bytes_max_ = 3 * (token_bytes_max + 3);
  }
  std::unique_ptr<TextDecoder> Make() const override {
    return std::make_unique<TokenizerDecoder>(tokenizer_);
  }
  std::int64_t text_bytes_max() const override { return text_bytes_max_; }

 private:
  const Tokenizer& tokenizer_;
  std::int64_t text_bytes_max_ = 0;
};

}  // namespace

std::unique_ptr<TextDecoderFactory> MakeTextDecoderFactory(const Tokenizer& tokenizer) {
  return std::make_unique<TokenizerDecoderFactory>(tokenizer);
}

}  // namespace dsa
