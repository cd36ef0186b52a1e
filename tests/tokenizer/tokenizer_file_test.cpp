// Files that are not exactly what we support are refused by key and value.
#include "tokenizer/tokenizer_file.h"

#include "tests/tokenizer/fixtures.h"
#include "tokenizer/byte_level.h"

#include <fstream>
#include <functional>

#include <catch2/catch.hpp>
#include <unistd.h>

namespace dsa {
namespace {

// The smallest file of the supported kind: 256 bytes, "ab", "abc", and two added tokens.
Json SmallFile() {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[ByteCharacter(static_cast<std::uint8_t>(byte))] = byte;
  }
  vocabulary["ab"] = 256;
  vocabulary["abc"] = 257;
  Json file = Json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 258, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 259, "content": "<user>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": true, "special": false}],
    "normalizer": {"type": "Sequence", "normalizers": []},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated",
       "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null,
              "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
              "byte_fallback": false, "merges": ["a b", ["ab", "c"]]}
  })");
  file["model"]["vocab"] = std::move(vocabulary);
  return file;
}

// A file that lives as long as the object.
class TemporaryFile final {
 public:
  explicit TemporaryFile(const std::string& text)
      : path_("/tmp/dsa_tokenizer_test_" + std::to_string(getpid()) + ".json") {
    std::ofstream(path_) << text;
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string ErrorOf(const std::string& text) {
  const TemporaryFile file(text);
  const Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(file.path());
  if (tokenizer.ok()) {
    return "loaded";
  }
  const std::string prefix = file.path() + ": ";
  CHECK(tokenizer.error().message.rfind(prefix, 0) == 0);
  CHECK(tokenizer.error().message.find('\n') == std::string::npos);
  return tokenizer.error().message.substr(prefix.size());
}

}  // namespace

TEST_CASE("a small file loads, merges as text or pairs", "[tokenizer][file]") {
  const TemporaryFile file(SmallFile().dump());
  const auto tokenizer = Tokenizer::Load(file.path()).value();
  CHECK(tokenizer->size() == 260);
  CHECK(testing::Values(tokenizer->Encode("abcab")) == std::vector<std::int32_t>{257, 256});
  CHECK(testing::Values(tokenizer->EncodeWithAdded("ab<end><user>")) ==
        std::vector<std::int32_t>{256, 258, 259});
  CHECK(tokenizer->AddedToken("<user>") == TokenId{259});
  CHECK(tokenizer->Encode("<user>").size() == 6);
}

TEST_CASE("what is not supported is refused by key and value", "[tokenizer][file]") {
  struct Case {
    std::string name;
    std::function<void(Json&)> change;
    std::string error;  // its beginning
  };
  const std::vector<Case> cases = {
      {"type", [](Json& f) { f["model"]["type"] = "WordPiece"; },
       "model.type: \"WordPiece\" is not one of BPE"},
      {"dropout", [](Json& f) { f["model"]["dropout"] = 0.1; },
       "model.dropout: 0.1 is not supported"},
      {"unk", [](Json& f) { f["model"]["unk_token"] = "<unk>"; },
       "model.unk_token: \"<unk>\" is not supported"},
      {"fallback", [](Json& f) { f["model"]["byte_fallback"] = true; },
       "model.byte_fallback: true is not supported"},
      {"prefix", [](Json& f) { f["model"]["continuing_subword_prefix"] = "##"; },
       "model.continuing_subword_prefix: \"##\" is not supported"},
      {"suffix", [](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; },
       "model.end_of_word_suffix: \"</w>\" is not supported"},
      {"model key", [](Json& f) { f["model"]["extra"] = 1; }, "model.extra: unknown key"},
      {"key", [](Json& f) { f["extra"] = 1; }, "extra: unknown key"},
      {"version", [](Json& f) { f["version"] = "2.0"; }, "version: \"2.0\" is not supported"},
      {"truncation",
       [](Json& f) {
         f["truncation"] = {{"max_length", 5}};
       },
       "truncation: {\"max_length\":5} is not supported"},
      {"normalizer",
       [](Json& f) {
         f["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer: {\"type\":\"NFC\"} is not supported"},
      {"processor",
       [](Json& f) {
         f["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       "post_processor.type: \"TemplateProcessing\" is not one of ByteLevel"},
      {"decoder", [](Json& f) { f["decoder"]["type"] = "Metaspace"; },
       "decoder.type: \"Metaspace\" is not one of ByteLevel"},
      {"no decoder", [](Json& f) { f.erase("decoder"); }, "decoder: missing"},
      {"stage", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["type"] = "Digits"; },
       "pre_tokenizer.pretokenizers[0].type: \"Digits\" is not one of Split, ByteLevel"},
      {"behavior", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
       "pre_tokenizer.pretokenizers[0].behavior: \"Removed\" is not one of Isolated"},
      {"invert", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["invert"] = true; },
       "pre_tokenizer.pretokenizers[0].invert: true is not supported"},
      {"regex",
       [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a|b)+"; },
       "pre_tokenizer.pretokenizers[0].pattern.Regex: a group other than"},
      {"use_regex", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; },
       "pre_tokenizer.pretokenizers[1].use_regex: true is not supported"},
      {"prefix space",
       [](Json& f) { f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
       "pre_tokenizer.pretokenizers[1].add_prefix_space: true is not supported"},
      {"no ByteLevel", [](Json& f) { f["pre_tokenizer"]["pretokenizers"].erase(1); },
       "pre_tokenizer.pretokenizers[0].type: the last stage"},
      {"id twice", [](Json& f) { f["model"]["vocab"]["abc"] = 256; },
       "model.vocab.\"abc\": id 256 belongs to \"ab\" too"},
      {"id range", [](Json& f) { f["model"]["vocab"]["abc"] = 258; },
       "model.vocab.\"abc\": 258 is not an id in [0, 257]"},
      {"id sign", [](Json& f) { f["model"]["vocab"]["abc"] = -1; },
       "model.vocab.\"abc\": -1 is not an id in [0, 257]"},
      {"id kind", [](Json& f) { f["model"]["vocab"]["abc"] = 1.5; },
       "model.vocab.\"abc\": 1.5 is not an id in [0, 257]"},
      {"no byte",
       [](Json& f) {
         f["model"]["vocab"].erase("!");
         f["model"]["vocab"]["zz"] = 33;
       },
       "model.vocab: no token for byte 0x21"},
      {"merge part", [](Json& f) { f["model"]["merges"][0] = "a xyz"; },
       "model.merges[0]: \"a xyz\" has a part that is not in vocab"},
      {"merge whole", [](Json& f) { f["model"]["merges"][0] = "b a"; },
       "model.merges[0]: \"b a\" makes a token that is not in vocab"},
      {"merge form", [](Json& f) { f["model"]["merges"][0] = "a b c"; },
       "model.merges[0]: \"a b c\" is not two tokens"},
      {"merge twice", [](Json& f) { f["model"]["merges"].push_back("a b"); },
       "model.merges[2]: \"a b\" stands there twice"},
      {"merge dropped", [](Json& f) { f["model"]["merges"].erase(1); },
       "model.merges: no merge makes token \"abc\" of id 257"},
      {"no merges", [](Json& f) { f["model"].erase("merges"); }, "model.merges: missing"},
      {"lstrip", [](Json& f) { f["added_tokens"][0]["lstrip"] = true; },
       "added_tokens[0].lstrip: true is not supported"},
      {"rstrip", [](Json& f) { f["added_tokens"][1]["rstrip"] = true; },
       "added_tokens[1].rstrip: true is not supported"},
      {"single word", [](Json& f) { f["added_tokens"][1]["single_word"] = true; },
       "added_tokens[1].single_word: true is not supported"},
      {"added twice", [](Json& f) { f["added_tokens"][1]["content"] = "<end>"; },
       "added_tokens[1].content: \"<end>\" is empty or stands there twice"},
      {"added empty", [](Json& f) { f["added_tokens"][1]["content"] = ""; },
       "added_tokens[1].content: \"\" is empty"},
      {"added id", [](Json& f) { f["added_tokens"][1]["id"] = 300; },
       "added_tokens[1].id: 300 is not 259"},
      {"added id taken", [](Json& f) { f["added_tokens"][0]["id"] = 5; },
       "added_tokens[0].id: 5 is not 258"},
      {"added key", [](Json& f) { f["added_tokens"][0]["extra"] = 5; },
       "added_tokens[0].extra: unknown key"},
  };
  for (const Case& c : cases) {
    Json file = SmallFile();
    c.change(file);
    CAPTURE(c.name);
    CHECK_THAT(ErrorOf(file.dump()), Catch::Matchers::StartsWith(c.error));
  }
  CHECK_THAT(ErrorOf("{"), Catch::Matchers::StartsWith("not valid JSON"));
  CHECK_THAT(ErrorOf("[]"), Catch::Matchers::StartsWith("document: [] is not an object"));
  CHECK_FALSE(Tokenizer::Load("/nonexistent/tokenizer.json").ok());
}

TEST_CASE("a file cut off anywhere is refused", "[tokenizer][file]") {
  const std::string text = SmallFile().dump();
  for (std::size_t size = 0; size < text.size(); size += 97) {
    CHECK(ErrorOf(text.substr(0, size)) != "loaded");
  }
}

}  // namespace dsa
