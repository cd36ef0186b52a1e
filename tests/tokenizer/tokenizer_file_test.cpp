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

std::string LoadErrorOf(const std::string& text) {
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
      {"prefix", [](Json& f) { f["model"]["continuing_subword_prefix"] = "##"; },
       "model.continuing_subword_prefix: \"##\" is not supported"},
      {"suffix", [](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; },
       "model.end_of_word_suffix: \"</w>\" is not supported"},
      {"model key", [](Json& f) { f["model"]["extra"] = 1; }, "model.extra: unknown key"},
      {"key", [](Json& f) { f["extra"] = 1; }, "extra: unknown key"},
      {"version", [](Json& f) { f["version"] = "2.0"; }, "version: \"2.0\" is not supported"},
      {"normalizer",
       [](Json& f) {
         f["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer: {\"type\":\"NFC\"} is not supported"},
      {"decoder", [](Json& f) { f["decoder"]["type"] = "Metaspace"; },
       "decoder.type: \"Metaspace\" is not one of ByteLevel, Sequence"},
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
      {"id sign", [](Json& f) { f["model"]["vocab"]["abc"] = -1; },
       "model.vocab.\"abc\": -1 is not an id in [0, 4194304)"},
      {"id kind", [](Json& f) { f["model"]["vocab"]["abc"] = 1.5; },
       "model.vocab.\"abc\": 1.5 is not an id in [0, 4194304)"},
      {"id range", [](Json& f) { f["model"]["vocab"]["abc"] = 1 << 22; },
       "model.vocab.\"abc\": 4194304 is not an id in [0, 4194304)"},
      {"id overflow", [](Json& f) { f["model"]["vocab"]["abc"] = ~std::uint64_t{0}; },
       "model.vocab.\"abc\": 18446744073709551615 is not an id"},
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
      {"no merges", [](Json& f) { f["model"].erase("merges"); }, "model.merges: missing"},
      {"single word", [](Json& f) { f["added_tokens"][1]["single_word"] = true; },
       "added_tokens[1].single_word: true is not supported"},
      {"added twice", [](Json& f) { f["added_tokens"][1]["content"] = "<end>"; },
       "added_tokens[1].content: \"<end>\" is empty or stands there twice"},
      {"added empty", [](Json& f) { f["added_tokens"][1]["content"] = ""; },
       "added_tokens[1].content: \"\" is empty"},
      {"added id", [](Json& f) { f["added_tokens"][1]["content"] = "abc"; },
       "added_tokens[1].id: 259 is not 257, the id of \"abc\""},
      {"added id taken", [](Json& f) { f["added_tokens"][0]["id"] = 97; },
       "added_tokens[0].id: 97 belongs to \"a\" too"},
      {"added ids twice", [](Json& f) { f["added_tokens"][1]["id"] = 258; },
       "added_tokens[1].id: 258 belongs to \"<end>\" too"},
      {"added key", [](Json& f) { f["added_tokens"][0]["extra"] = 5; },
       "added_tokens[0].extra: unknown key"},
  };
  for (const Case& c : cases) {
    Json file = SmallFile();
    c.change(file);
    CAPTURE(c.name);
    CHECK_THAT(LoadErrorOf(file.dump()), Catch::Matchers::StartsWith(c.error));
  }
  CHECK_THAT(LoadErrorOf("{"), Catch::Matchers::StartsWith("not valid JSON"));
  CHECK_THAT(LoadErrorOf("[]"), Catch::Matchers::StartsWith("document: [] is not an object"));
  CHECK_FALSE(Tokenizer::Load("/nonexistent/tokenizer.json").ok());
}

// What transformers 4.57 and 5.x write for the same tokenizer, and what else changes no ids.
TEST_CASE("a file that another library saved again encodes as before", "[tokenizer][file]") {
  const Json text = Json::parse(R"({"Sequence": {"id": "A", "type_id": 0}})");
  const Json plain_template = {{"type", "TemplateProcessing"},
                               {"single", Json::array({text})},
                               {"pair", Json::array({text})},
                               {"special_tokens", Json::object()}};
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", true},
                           {"trim_offsets", false},
                           {"use_regex", true}};
  const std::vector<std::pair<std::string, std::function<void(Json&)>>> cases = {
      {"truncation",
       [](Json& f) {
         f["truncation"] = {{"direction", "Right"},
                            {"max_length", 1},
                            {"strategy", "LongestFirst"},
                            {"stride", 0}};
       }},
      {"padding",
       [](Json& f) {
         f["padding"] = {{"strategy", {{"Fixed", 9}}}, {"pad_id", 0}, {"pad_token", "!"}};
       }},
      {"template", [&](Json& f) { f["post_processor"] = plain_template; }},
      {"processors",
       [&](Json& f) {
         f["post_processor"] = {{"type", "Sequence"},
                                {"processors", Json::array({byte_level, plain_template})}};
       }},
      {"dropout 0", [](Json& f) { f["model"]["dropout"] = 0; }},
      {"dropout 0.0", [](Json& f) { f["model"]["dropout"] = 0.0; }},
      {"decoders",
       [&](Json& f) {
         f["decoder"] = {{"type", "Sequence"},
                         {"decoders", Json::array({byte_level, Json{{"type", "Fuse"}}})}};
       }},
      {"decoders in decoders",
       [&](Json& f) {
         f["decoder"] = {
             {"type", "Sequence"},
             {"decoders",
              Json::array({Json{{"type", "Sequence"},
                                {"decoders", Json::array({byte_level, byte_level})}}})}};
       }},
      {"no type", [](Json& f) { f["model"].erase("type"); }},
      {"unknown token", [](Json& f) { f["model"]["unk_token"] = "<unk>"; }},
      {"byte fallback", [](Json& f) { f["model"]["byte_fallback"] = true; }},
      {"no normalizer", [](Json& f) { f["normalizer"] = nullptr; }},
      {"normalizers in normalizers",
       [](Json& f) {
         f["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array({f["normalizer"]})}};
       }},
      {"unreachable", [](Json& f) { f["model"]["vocab"]["xyz"] = 261; }},
      {"gap in added ids", [](Json& f) { f["added_tokens"][1]["id"] = 300; }},
  };
  for (const auto& [name, change] : cases) {
    CAPTURE(name);
    Json json = SmallFile();
    change(json);
    const TemporaryFile file(json.dump());
    const auto tokenizer = Tokenizer::Load(file.path());
    INFO((tokenizer.ok() ? "" : tokenizer.error().message));
    REQUIRE(tokenizer.ok());
    CHECK(testing::Values(tokenizer.value()->EncodeWithAdded("abcab <end>12345")) ==
          std::vector<std::int32_t>{257, 256, 32, 258, 49, 50, 51, 52, 53});
    CHECK(testing::Decode(*tokenizer.value(), {TokenId{257}, TokenId{32}, TokenId{258}}) ==
          "abc <end>");
  }
}

TEST_CASE("ids are those that the file says, with gaps", "[tokenizer][file]") {
  Json json = SmallFile();
  json["model"]["vocab"]["abc"] = 280;
  json["added_tokens"][0]["id"] = 300;
  json["added_tokens"][1]["id"] = 257;  // where the vocabulary has none
  const TemporaryFile file(json.dump());
  const auto tokenizer = Tokenizer::Load(file.path()).value();
  CHECK(tokenizer->size() == 301);
  CHECK(testing::Values(tokenizer->EncodeWithAdded("abc<end><user>")) ==
        std::vector<std::int32_t>{280, 300, 257});
  for (const int gap : {258, 279, 281, 299, 301}) {
    CHECK(tokenizer->Bytes(TokenId{gap}).empty());
  }
  CHECK(tokenizer->Bytes(TokenId{257}) == "<user>");
  CHECK(tokenizer->IsSpecial(TokenId{300}));
  CHECK_FALSE(tokenizer->IsSpecial(TokenId{257}));
}

// As huggingface/tokenizers 0.23 takes them.
TEST_CASE("an added token takes the white space that its flags say", "[tokenizer][file]") {
  Json json = SmallFile();
  json["added_tokens"][0]["lstrip"] = true;
  json["added_tokens"][0]["rstrip"] = true;
  const TemporaryFile file(json.dump());
  const auto tokenizer = Tokenizer::Load(file.path()).value();
  const auto ids = [&](std::string_view text) {
    return testing::Values(tokenizer->EncodeWithAdded(text));
  };
  CHECK(ids("b  \n<end> \u00a0\u3000 \u200b c") ==
        std::vector<std::int32_t>{98, 258, 226, 128, 139, 32, 99});
  CHECK(ids("<end>  <end>") == std::vector<std::int32_t>{258, 258});
  CHECK(ids(" <user> <end> <user> ") == std::vector<std::int32_t>{32, 259, 258, 259, 32});
  // However much white space there is, it is one token: no text is too long by its bytes alone.
  const std::string spaces = std::string(5000, ' ') + "<end>";
  const TextRange all{.begin = 0, .end = spaces.size()};
  CHECK(tokenizer->EncodeAtMost(spaces, {&all, 1}, 1).has_value());
  CHECK(spaces.size() / tokenizer->longest_token_bytes() <= 1);
  // One that does not strip leaves it.
  json["added_tokens"][0]["lstrip"] = false;
  json["added_tokens"][0]["rstrip"] = false;
  const TemporaryFile plain(json.dump());
  CHECK(testing::Values(Tokenizer::Load(plain.path()).value()->EncodeWithAdded(" <end> ")) ==
        std::vector<std::int32_t>{32, 258, 32});
}

TEST_CASE("a template may put one token before the text, and nothing else", "[tokenizer][file]") {
  const auto with = [](const std::string& single, const std::string& tokens) {
    Json json = SmallFile();
    json["post_processor"] =
        Json::parse(R"({"type": "TemplateProcessing", "pair": [], "single": )" + single +
                    R"(, "special_tokens": )" + tokens + "}");
    return json.dump();
  };
  const std::string text = R"({"Sequence": {"id": "A", "type_id": 0}})";
  const std::string end = R"({"SpecialToken": {"id": "<end>", "type_id": 0}})";
  const std::string tokens = R"({"<end>": {"id": "<end>", "ids": [258], "tokens": ["<end>"]}})";
  {
    const TemporaryFile file(with("[" + end + "," + text + "]", tokens));
    const auto tokenizer = Tokenizer::Load(file.path()).value();
    CHECK(tokenizer->has_template());
    CHECK(tokenizer->template_prefix() == TokenId{258});
    CHECK(testing::Values(tokenizer->Encode("ab")) == std::vector<std::int32_t>{256});
  }
  {
    const TemporaryFile file(with("[" + text + "]", "{}"));
    const auto tokenizer = Tokenizer::Load(file.path()).value();
    CHECK(tokenizer->has_template());
    CHECK_FALSE(tokenizer->template_prefix().has_value());
  }
  {
    const TemporaryFile file(SmallFile().dump());
    CHECK_FALSE(Tokenizer::Load(file.path()).value()->has_template());
  }
  const std::string other = R"({"Sequence": {"id": "B", "type_id": 0}})";
  for (const std::string& single : std::vector<std::string>{
           "[]", "[" + text + "," + end + "]", "[" + end + "]",
           "[" + end + "," + text + "," + end + "]", "[" + text + "," + text + "]",
           "[" + other + "]", "[1, 2]", "[{}]"}) {
    CAPTURE(single);
    CHECK_THAT(LoadErrorOf(with(single, tokens)),
               Catch::Matchers::StartsWith("post_processor.single"));
  }
  CHECK_THAT(LoadErrorOf(with("[" + end + "," + text + "]", "{}")),
             Catch::Matchers::StartsWith("post_processor.special_tokens.<end>: missing"));
  Json json = SmallFile();
  json["post_processor"] = {{"type", "RobertaProcessing"}};
  CHECK_THAT(LoadErrorOf(json.dump()),
             Catch::Matchers::StartsWith("post_processor.type: \"RobertaProcessing\""));
}

TEST_CASE("a file cut off anywhere is refused", "[tokenizer][file]") {
  const std::string text = SmallFile().dump();
  for (std::size_t size = 0; size < text.size(); size += 97) {
    CHECK(LoadErrorOf(text.substr(0, size)) != "loaded");
  }
}

}  // namespace dsa
