// Ids to text for one request, as the engine sees it: the tokenizer's incremental decoder, or a
// fake in tests.  Engine thread only.
#pragma once

#include "common/ids.h"
#include "scheduler/request.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace dsa {

class Tokenizer;

class TextDecoder {
 public:
  TextDecoder() = default;
  TextDecoder(const TextDecoder&) = delete;
  TextDecoder& operator=(const TextDecoder&) = delete;
  virtual ~TextDecoder() = default;

  // Appends the text that `id` completes to `out`: whole characters.
  virtual void Push(TokenId id, std::string& out) = 0;
  // Says that Push of `id` comes soon: its text may be far away in memory, and before it where it
  // lies.
  virtual void PrefetchPlace(TokenId /*id*/) const {}
  virtual void Prefetch(TokenId /*id*/) const {}
  // Appends what is still held back.
  virtual void Finish(std::string& out) = 0;
};

// Which of a reply's text stop strings act on, where that is not all of it.  One per request;
// engine thread only.
class ContentReader {
 public:
  ContentReader() = default;
  ContentReader(const ContentReader&) = delete;
  ContentReader& operator=(const ContentReader&) = delete;
  virtual ~ContentReader() = default;

  // Allocates all that Push uses of at most so many bytes, where no tool call stands in them.
  virtual void Reserve(std::int64_t text_bytes) = 0;
  // Reads on; appends the content that became certain.
  virtual void Push(std::string_view text, std::string& content) = 0;
  // The text is over.  Appends the rest of the content.
  virtual void Finish(FinishReason reason, std::string& content) = 0;
};

// Makes one decoder a request, on the thread that submits it.
class TextDecoderFactory {
 public:
  TextDecoderFactory() = default;
  TextDecoderFactory(const TextDecoderFactory&) = delete;
  TextDecoderFactory& operator=(const TextDecoderFactory&) = delete;
  virtual ~TextDecoderFactory() = default;

  virtual std::unique_ptr<TextDecoder> Make() const = 0;
  // The most bytes that one Push or Finish appends.
  virtual std::int64_t text_bytes_max() const = 0;
};

// `tokenizer` must outlive it.
std::unique_ptr<TextDecoderFactory> MakeTextDecoderFactory(const Tokenizer& tokenizer);

}  // namespace dsa
