// What the files beside the weights say about text, as transformers 4.57 and 5.x save them again.
#include "server/model_files.h"

#include "common/json.h"
#include "tests/paths.h"
#include "tests/temporary_folder.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

constexpr const char* kBos = "<｜begin▁of▁sentence｜>";

Json ReadTiny() {
  std::ifstream file(testing::SourcePath("models/dsa-tiny/tokenizer.json"));
  return Json::parse(file);
}

// The small model's tokenizer in a folder of its own, with changes.
struct Folder {
  explicit Folder(const std::function<void(Json&)>& change = {}) {
    Json tokenizer = ReadTiny();
    if (change) {
      change(tokenizer);
    }
    Write("tokenizer.json", tokenizer.dump());
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder / name) << text;
  }
  Result<ModelText> Load(const std::string& chat_format = "auto",
                         Architecture architecture = Architecture::kDeepseekV32) const {
    ModelConfig model;
    model.architecture = architecture;
    model.vocabulary = 4300;
    return LoadModelText(
        {.model_folder = folder.path(), .tokenizer_path = "", .chat_format = chat_format}, model);
  }
  bool AddsBos() const { return Load().value().add_bos; }

  testing::TemporaryFolder folder;
};

void PutTemplate(Json& tokenizer, const char* token) {
  Json single = Json::array();
  Json tokens = Json::object();
  if (token != nullptr) {
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    tokens[token] = {{"id", token}, {"ids", {0}}, {"tokens", {token}}};
  }
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  tokenizer["post_processor"] = {{"type", "TemplateProcessing"},
                                 {"single", single},
                                 {"pair", single},
                                 {"special_tokens", tokens}};
}

}  // namespace

TEST_CASE("a text begins with begin-of-sentence as the files say", "[config][files]") {
  Folder plain;
  CHECK(plain.Load().value().bos == TokenId{0});
  CHECK(plain.AddsBos());  // an older file, for the class that adds it
  plain.Write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizerFast"})");
  CHECK(plain.AddsBos());
  // As 5.x saves one that adds none: the key is gone, the class is its own.
  plain.Write("tokenizer_config.json", R"({"tokenizer_class": "TokenizersBackend"})");
  CHECK_FALSE(plain.AddsBos());
  plain.Write("tokenizer_config.json", R"({"tokenizer_class": "PreTrainedTokenizerFast"})");
  CHECK_FALSE(plain.AddsBos());
  plain.Write("tokenizer_config.json",
              R"({"tokenizer_class": "TokenizersBackend", "add_bos_token": true})");
  CHECK(plain.AddsBos());
  plain.Write("tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": false})");
  CHECK_FALSE(plain.AddsBos());
  plain.Write("tokenizer_config.json", R"({"add_eos_token": true})");
  CHECK(plain.Load().error().message.find("add_eos_token: true is not supported") !=
        std::string::npos);
  plain.Write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<s>"})");
  CHECK(plain.Load().error().message.find("add_bos_token: true, but ") != std::string::npos);
  plain.Write("tokenizer_config.json", R"({"add_bos_token": false, "bos_token": "<s>"})");
  CHECK_FALSE(plain.AddsBos());

  const Folder adds([](Json& json) { PutTemplate(json, kBos); });
  CHECK(adds.AddsBos());
  adds.Write("tokenizer_config.json", R"({"tokenizer_class": "TokenizersBackend"})");
  CHECK(adds.AddsBos());
  adds.Write("tokenizer_config.json", R"({"add_bos_token": false})");
  CHECK_FALSE(adds.AddsBos());
  const Folder adds_none([](Json& json) { PutTemplate(json, nullptr); });
  CHECK_FALSE(adds_none.AddsBos());
  const Folder adds_other([](Json& json) { PutTemplate(json, "<｜User｜>"); });
  CHECK(adds_other.Load().error().message.find("puts id 4084 before a text") != std::string::npos);
}

TEST_CASE("the chat format that is served has a reason", "[config][files]") {
  Folder folder;
  CHECK(folder.Load().value().chat.format == ChatFormat::kV32);
  CHECK_FALSE(folder.Load("auto", Architecture::kDeepseekV3).value().chat.format.has_value());
  CHECK_FALSE(folder.Load("auto", Architecture::kGlmMoeDsa).value().chat.format.has_value());
  CHECK_FALSE(folder.Load("none").value().chat.format.has_value());
  CHECK(folder.Load("v3.1").value().chat.format == ChatFormat::kV31);
  CHECK(folder.Load("v3.1").value().chat.reason == "by chat_format");
  // V3.2-Exp's own template, in the file that newer libraries save it to.
  folder.Write("chat_template.jinja",
               "{% if thinking %}<｜User｜><｜Assistant｜></think>{% endif %}");
  for (const Architecture architecture : {Architecture::kDeepseekV32, Architecture::kDeepseekV3}) {
    const ChatFormatChoice choice = folder.Load("auto", architecture).value().chat;
    CHECK(choice.format == ChatFormat::kV31);
    CHECK(choice.reason == "chat_template.jinja has its marks");
  }
  // A format whose tokens are missing is no choice.
  const Folder without([](Json& json) {
    for (Json& added : json["added_tokens"]) {
      if (added["content"] == "</think>") {
        added["content"] = "</thought>";
      }
    }
  });
  CHECK(without.Load("v3.2").error().message ==
        "chat_format: \"v3.2\": the tokenizer has no token </think>");
  CHECK(without.Load().value().chat.reason == "the tokenizer has no token </think>");
  CHECK(without.Load("none").ok());
}

// As an interrupted download leaves it: what the file would say must not be left aside in silence.
TEST_CASE("a link that leads nowhere is no absent file", "[config][files]") {
  for (const char* const name :
       {"tokenizer_config.json", "chat_template.jinja", "tokenizer.json"}) {
    const Folder folder;
    CHECK(folder.Load().ok());
    std::filesystem::remove(folder.folder / name);
    std::filesystem::create_symlink("../blobs/missing", folder.folder / name);
    const Result<ModelText> refused = folder.Load();
    CAPTURE(name);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message == folder.folder / name + ": a link that leads nowhere");
  }
}

TEST_CASE("a model is named as its folder, however that is written", "[config][files]") {
  CHECK(ModelNameOf("/models/v3.2") == "v3.2");
  CHECK(ModelNameOf("/models/v3.2//") == "v3.2");
  CHECK(ModelNameOf("/models/v3.2/.") == "v3.2");
  CHECK(ModelNameOf("/models/other/../v3.2/") == "v3.2");
  CHECK(ModelNameOf("models/v3.2") == "v3.2");
  CHECK(ModelNameOf("/") == "model");
  const std::filesystem::path here = std::filesystem::current_path();
  const testing::TemporaryFolder folder;
  const std::string inner = folder / "a b";
  std::filesystem::create_directory(inner);
  std::filesystem::create_directory_symlink("a b", folder / "current");
  std::filesystem::current_path(inner);
  CHECK(ModelNameOf(".") == "a b");
  CHECK(ModelNameOf("./") == "a b");
  CHECK(ModelNameOf("../a b/x/..") == "a b");
  CHECK(ModelNameOf("..") == std::filesystem::path(folder.path()).filename());
  CHECK(ModelNameOf("../current") == "current");
  std::filesystem::remove(inner);
  CHECK(ModelNameOf(".") == "model");
  CHECK(ModelNameOf("../v3.2") == "v3.2");
  std::filesystem::current_path(here);
}

}  // namespace dsa
