#include "tokenizer/json_lines.h"

#include "common/json.h"

#include <istream>
#include <vector>

namespace dsa {

Result<std::string> TokenizeLine(const Tokenizer& tokenizer, AddedMatching matching,
                                 std::string_view line) {
  DSA_ASSIGN_OR_RETURN(const Json json, ParseJson(line, "line"));
  DSA_ASSIGN_OR_RETURN(JsonObject object, JsonObject::From(json, "line", ""));
  DSA_ASSIGN_OR_RETURN(const std::string text, object.ReadString("text"));
  DSA_RETURN_IF_ERROR(object.CheckAllRead());
  std::vector<std::int32_t> ids;
  for (const TokenId id :
       matching == AddedMatching::kOn ? tokenizer.EncodeWithAdded(text) : tokenizer.Encode(text)) {
    ids.push_back(Value(id));
  }
  return Json{{"ids", ids}}.dump();
}

Result<std::string> RenderLine(ChatFormat format, std::string_view line) {
  DSA_ASSIGN_OR_RETURN(const Chat chat, ChatFromJson(line));
  DSA_ASSIGN_OR_RETURN(const RenderedPrompt prompt, RenderChat(chat, format));
  return Json{{"prompt", prompt.text}}.dump();
}

std::int64_t AnswerLines(std::istream& input,
                         const std::function<Result<std::string>(std::string_view)>& answer,
                         const std::function<void(std::string_view)>& write) {
  std::int64_t failed = 0;
  std::int64_t number = 0;
  for (std::string line; std::getline(input, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    const Result<std::string> answered = answer(line);
    if (answered.ok()) {
      write(answered.value());
    } else {
      // A message may quote bytes that are not UTF-8.
      const Json error = {{"error", answered.error().message}, {"line", number}};
      write(error.dump(-1, ' ', false, Json::error_handler_t::replace));
      ++failed;
    }
  }
  return failed;
}

}  // namespace dsa
