#include "tests/fuzz/targets.h"

#include "common/check.h"
#include "common/json.h"
#include "model/checkpoint.h"
#include "model/inspect.h"
#include "model/safetensors.h"
#include "tests/model/checkpoint_files.h"
#include "tests/tokenizer/fixtures.h"
#include "tokenizer/chat_format.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/json_lines.h"
#include "tokenizer/reply_decoder.h"
#include "tokenizer/reply_parser.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

#include <algorithm>
#include <sstream>
#include <string_view>

namespace dsa::fuzz {
namespace {

using testing::ReadBytes;
using testing::TemporaryFolder;
using testing::WriteBytes;

std::string_view Text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// One line of bounded length without control characters, which opens with where it comes from.
void CheckMessage(const Error& error, std::string_view source) {
  const std::string& message = error.message;
  const bool plain =
      IsValidUtf8(message) && std::none_of(message.begin(), message.end(), [](char byte) {
        return static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f;
      });
  DSA_CHECK(testing::IsOneLine(message) && plain, "message {}", QuotedName(message));
  DSA_CHECK(message.starts_with(source), "message {} does not name {}", QuotedName(message),
            source);
}

RandomCheckpointOptions Options() {
  RandomCheckpointOptions options = testing::SmallOptions();
  options.vocabulary = 512;  // room for a tokenizer
  return options;
}

// A checkpoint that is whole but for the file that a target replaces.
class CheckpointFolder final {
 public:
  explicit CheckpointFolder(std::string replaced) : replaced_(std::move(replaced)) {
    testing::MustWrite(Options(), folder_.path());
  }

  const std::string& path() const { return folder_.path(); }
  std::string ReadReplaced() const { return ReadBytes(folder_ / replaced_); }

  void Check(std::string_view text) const {
    WriteBytes(folder_ / replaced_, std::string(text));
    const Result<Checkpoint> checkpoint = Checkpoint::Open(path());
    if (!checkpoint.ok()) {
      CheckMessage(checkpoint.error(), path());
      return;
    }
    const Result<std::string> report = InspectCheckpoint(path());
    if (!report.ok()) {
      CheckMessage(report.error(), path());
    }
  }

 private:
  TemporaryFolder folder_;
  std::string replaced_;
};

// The tokenizer of CheckpointFolder.
const Tokenizer& SmallTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    const CheckpointFolder folder("tokenizer.json");
    return Tokenizer::Load(folder.path() + "/tokenizer.json").value();
  }();
  return *tokenizer;
}

// What a reply holds, its three parts one behind the other.
std::string Parse(ChatFormat format, bool thinking, ReplyEnd end, std::string_view text,
                  std::size_t piece_bytes) {
  const std::unique_ptr<ReplyParser> parser = MakeReplyParser(format, thinking);
  std::string reasoning;
  std::string content;
  std::string calls;
  const auto add = [&](const ReplyDelta& delta) {
    reasoning += delta.reasoning;
    content += delta.content;
    for (const ToolCall& call : delta.tool_calls) {
      calls += call.id + " " + call.name + " " + call.arguments + "\n";
    }
  };
  for (std::size_t begin = 0; begin < text.size(); begin += piece_bytes) {
    add(parser->Push(text.substr(begin, piece_bytes)));
  }
  add(parser->Finish(end));
  if (calls.empty() && !thinking) {  // no text is lost or changed
    std::string whole(text);
    std::erase_if(whole, [](char byte) { return byte == kMarkBegin || byte == kMarkEnd; });
    DSA_CHECK(content == whole, "{} bytes of content of {}", content.size(), whole.size());
  }
  return reasoning + "\n" + content + "\n" + calls;
}

// The lines that a program would write, which are JSON whatever came in.
void CheckAnswers(std::string_view text,
                  const std::function<Result<std::string>(std::string_view)>& answer) {
  std::istringstream lines{std::string(text)};
  AnswerLines(lines, answer, [](std::string_view line) {
    const Result<Json> json = ParseJson(line, "answer");
    DSA_CHECK(json.ok() && json.value().size() == (json.value().contains("error") ? 2 : 1),
              "answer {}", QuotedName(line));
    if (json.value().contains("error")) {
      CheckMessage({ErrorCode::kInvalidArgument, json.value()["error"].get<std::string>()}, "");
    }
  });
}

CheckpointFolder& IndexFolder() {
  static CheckpointFolder folder("model.safetensors.index.json");
  return folder;
}
CheckpointFolder& ConfigFolder() {
  static CheckpointFolder folder("config.json");
  return folder;
}
CheckpointFolder& GenerationFolder() {
  static CheckpointFolder folder("generation_config.json");
  return folder;
}
TemporaryFolder& FileFolder() {
  static TemporaryFolder folder;
  return folder;
}

}  // namespace

int FuzzSafetensors(const std::uint8_t* data, std::size_t size) {
  const std::string path = FileFolder() / "x.safetensors";
  WriteBytes(path, std::string(Text(data, size)));
  const Result<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) {
    CheckMessage(file.error(), path);
    return 0;
  }
  std::int64_t end = 8;
  for (int byte = 7; byte >= 0; --byte) {
    end += static_cast<std::int64_t>(data[byte]) << (8 * byte);
  }
  for (const StoredTensor& tensor : file.value().tensors()) {
    std::int64_t bytes = SizeOf(tensor.type);
    for (const std::int64_t extent : tensor.shape) {
      bytes *= extent;
    }
    DSA_CHECK(tensor.offset == end && tensor.bytes == bytes, "tensor at {} of {} bytes",
              tensor.offset, tensor.bytes);
    end += bytes;
  }
  DSA_CHECK(end == static_cast<std::int64_t>(size), "tensors end at {} of {}", end, size);
  return 0;
}

int FuzzIndex(const std::uint8_t* data, std::size_t size) {
  IndexFolder().Check(Text(data, size));
  return 0;
}

int FuzzConfig(const std::uint8_t* data, std::size_t size) {
  ConfigFolder().Check(Text(data, size));
  return 0;
}

int FuzzGeneration(const std::uint8_t* data, std::size_t size) {
  GenerationFolder().Check(Text(data, size));
  return 0;
}

int FuzzTokenizerFile(const std::uint8_t* data, std::size_t size) {
  const std::string path = FileFolder() / "tokenizer.json";
  WriteBytes(path, std::string(Text(data, size)));
  const Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) {
    CheckMessage(tokenizer.error(), path);
    return 0;
  }
  const std::string text = "Don't split 12345 of these,\r\n\n  日本語 ½ <｜User｜>x</think>";
  for (const auto& ids :
       {tokenizer.value()->Encode(text), tokenizer.value()->EncodeWithAdded(text)}) {
    const std::string decoded = testing::Decode(*tokenizer.value(), ids);
    // A token that takes white space with it does not give it back.
    const bool strips = tokenizer.value()->longest_token_bytes() > size;
    DSA_CHECK(decoded == text || strips, "decoded {}", QuotedName(decoded));
  }
  return 0;
}

int FuzzTokenizerConfig(const std::uint8_t* data, std::size_t size) {
  const std::string path = FileFolder() / "tokenizer_config.json";
  WriteBytes(path, std::string(Text(data, size)));
  const Result<ChatFormatChoice> choice =
      FindChatFormat(FileFolder().path(), SmallTokenizer(), ChatFormat::kV32);
  if (!choice.ok()) {
    CheckMessage(choice.error(), path);
  } else {
    CheckMessage({ErrorCode::kInvalidArgument, choice.value().reason}, "");
  }
  return 0;
}

int FuzzTokenizeLine(const std::uint8_t* data, std::size_t size) {
  for (const AddedMatching matching : {AddedMatching::kOff, AddedMatching::kOn}) {
    CheckAnswers(Text(data, size), [&](std::string_view line) -> Result<std::string> {
      Result<std::string> answer = TokenizeLine(SmallTokenizer(), matching, line);
      if (answer.ok()) {
        const Json document = ParseJson(answer.value(), "answer").value();
        std::vector<TokenId> ids;
        for (const Json& id : document["ids"]) {
          ids.push_back(TokenId{id.get<std::int32_t>()});
        }
        const std::string text = ParseJson(line, "line").value()["text"];
        DSA_CHECK(testing::Decode(SmallTokenizer(), ids) == text, "ids of {}", QuotedName(text));
      }
      return answer;
    });
  }
  return 0;
}

int FuzzRenderLine(const std::uint8_t* data, std::size_t size) {
  for (const ChatFormat format : {ChatFormat::kV32, ChatFormat::kV31}) {
    CheckAnswers(Text(data, size), [format](std::string_view line) -> Result<std::string> {
      const Result<Chat> chat = ChatFromJson(line);
      if (chat.ok()) {
        const Result<RenderedPrompt> prompt = RenderChat(chat.value(), format);
        if (prompt.ok()) {
          const std::vector<TokenId> ids =
              SmallTokenizer().EncodeWithAdded(prompt.value().text, prompt.value().template_ranges);
          DSA_CHECK(testing::Decode(SmallTokenizer(), ids) == prompt.value().text, "ids of {}",
                    QuotedName(prompt.value().text));
        }
      }
      return RenderLine(format, line);
    });
  }
  return 0;
}

int FuzzReply(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const ChatFormat format = data[0] % 2 == 0 ? ChatFormat::kV32 : ChatFormat::kV31;
  const bool thinking = data[0] / 2 % 2 == 1;
  const ReplyEnd end = data[0] / 4 % 2 == 0 ? ReplyEnd::kByModel : ReplyEnd::kCutOff;
  const std::size_t piece_bytes = 1 + data[0] / 8;
  const std::string_view text = Text(data, size).substr(1);
  const std::string whole = Parse(format, thinking, end, text, text.size() + 1);
  const std::string pieces = Parse(format, thinking, end, text, piece_bytes);
  DSA_CHECK(whole == pieces, "whole {} in pieces {}", QuotedName(whole), QuotedName(pieces));
  return 0;
}

std::span<const Target> Targets() {
  static const Target targets[] = {
      {"safetensors", FuzzSafetensors,
       [] {
         const std::string header =
             R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],)"
             R"("data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},)"
             R"("c.weight":{"dtype":"F8_E4M3","shape":[0,7],"data_offsets":[26,26]}})";
         return std::vector{testing::Safetensors(header, std::string(26, 'x')),
                            testing::Safetensors("{} ", "")};
       },
       3000},
      {"index.json", FuzzIndex, [] { return std::vector{IndexFolder().ReadReplaced()}; }, 400},
      {"config.json", FuzzConfig, [] { return std::vector{ConfigFolder().ReadReplaced()}; }, 600},
      {"generation_config.json", FuzzGeneration,
       [] {
         return std::vector<std::string>{
             GenerationFolder().ReadReplaced(),
             R"({"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.6, "top_k": 5})"};
       },
       300},
      {"tokenizer.json", FuzzTokenizerFile,
       [] { return std::vector{ReadBytes(ConfigFolder().path() + "/tokenizer.json")}; }, 400},
      {"tokenizer_config.json", FuzzTokenizerConfig,
       [] {
         return std::vector<std::string>{
             R"({"add_bos_token": true, "chat_template": "{% if thinking %}<｜User｜>{{ m }})"
             R"(<｜Assistant｜></think>{% endif %}"})",
             R"({"chat_template": [{"name": "default", "template": "<｜User｜><｜Assistant｜>)"
             R"(</think><｜DSML｜function_calls>"}, {"name": "tool_use", "template": "x"}]})"};
       },
       1000},
      {"tokenize", FuzzTokenizeLine,
       [] {
         return std::vector<std::string>{
             "{\"text\": \"<｜User｜>Grüße, 世界! 👍🏽\\n\\u00e9\"}\n",
             "{\"text\": \"\"}\n{\"text\": \"a b  c\"}\n"};
       },
       3000},
      {"render", FuzzRenderLine,
       [] {
         return std::vector<std::string>{
             R"({"messages": [{"role": "system", "content": "s", "tools": [{"type": "function",)"
             R"( "function": {"name": "f", "parameters": {"type": "object"}}}]}, {"role": "user",)"
             R"( "content": [{"type": "text", "text": "<｜User｜>u"}]}, {"role": "assistant",)"
             R"( "content": null, "reasoning_content": "r", "tool_calls": [{"id": "1", "type":)"
             R"( "function", "function": {"name": "f", "arguments": "{\"a\": [1.0, -0, 1e20,)"
             R"( null], \"b\": \"x\\ny\"}"}}]}, {"role": "tool", "tool_call_id": "1",)"
             R"( "content": "</think>"}, {"role": "user", "content": "v"}], "thinking": true})"
             "\n"};
       },
       3000},
      {"reply", FuzzReply,
       [] {
         return std::vector<std::string>{
             "\x06why</think>Yes.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n"
             "<｜DSML｜parameter name=\"a\" string=\"true\">x</｜DSML｜parameter>\n"
             "<｜DSML｜parameter name=\"b\" string=\"false\">[1]</｜DSML｜parameter>\n"
             "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
             "\x03why</think>Sure.\xff<｜tool▁call▁begin｜>\xfe"
             "get\xff<｜tool▁sep｜>\xfe{}"
             "\xff<｜tool▁call▁end｜>\xfe",
             "\x0bwhy</think>Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": "
             "1}"
             "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"};
       },
       6000},
  };
  return targets;
}

}  // namespace dsa::fuzz
