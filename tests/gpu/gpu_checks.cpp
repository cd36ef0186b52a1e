#include "tests/gpu/gpu_checks.h"

#include "common/check.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/json.h"
#include "common/log.h"
#include "server/devices.h"
#include "tokenizer/chat_format.h"

#include <cstdlib>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace dsa::testing {
namespace {

constexpr int kSkipped = 77;
constexpr std::int64_t kFileBytesMax = std::int64_t{1} << 22;

std::string MustRead(const std::string& path) {
  const auto text = ReadFile(path, kFileBytesMax);
  DSA_CHECK(text.ok(), "{}", std::string_view(text.error().message));
  return text.value();
}

// What tests/fixtures/make_quality.py has written: prose that the model was not trained on.
const std::string& Text() {
  static const std::string text = MustRead("text/passages.txt");
  return text;
}

}  // namespace

std::unique_ptr<Backend> MustMake(const std::string& device) {
  auto backend = MakeBackend(device, 0);
  if (!backend.ok()) {
    fmt::print(stderr, "skipped: {}\n", backend.error().message);
    std::exit(kSkipped);
  }
  return std::move(backend).value();
}

const Tokenizer& GpuTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(kGpuModel + "/tokenizer.json")).value();
  return *tokenizer;
}

std::vector<TokenId> TextIds(std::size_t first, std::size_t count) {
  static const std::vector<TokenId> ids = GpuTokenizer().Encode(Text());
  std::vector<TokenId> taken;
  for (std::size_t i = 0; i < count; ++i) {
    taken.push_back(ids[(first + i) % ids.size()]);
  }
  return taken;
}

const std::vector<std::string>& Sentences() {
  static const std::vector<std::string> sentences = [] {
    std::vector<std::string> found;
    std::string sentence;
    for (const char c : Text()) {
      sentence += c == '\n' ? ' ' : c;
      if (c == '.' && sentence.size() > 40) {
        if (sentence.find(" code of ") == std::string::npos) {
          found.push_back(sentence);
        }
        sentence.clear();
      }
    }
    return found;
  }();
  return sentences;
}

std::vector<std::vector<TokenId>> QuestionPrompts() {
  constexpr std::size_t kOfHaystack = 2;
  const std::string path = "text/questions.json";
  const Json all = ParseJson(MustRead(path), path).value();
  std::vector<std::string> texts;
  for (const Json& haystack : all["haystacks"]) {
    for (std::size_t i = 0; i < kOfHaystack; ++i) {
      texts.push_back(haystack["text"].get<std::string>() + "\n\n" +
                      haystack["questions"][i]["question"].get<std::string>());
    }
  }
  for (const char* kind : {"definitions", "sums"}) {
    for (const Json& question : all[kind]) {
      texts.push_back(question["question"].get<std::string>());
    }
  }
  const ChatFormat format = *FindChatFormat(kGpuModel, GpuTokenizer(), std::nullopt).value().format;
  std::vector<std::vector<TokenId>> prompts;
  for (const std::string& text : texts) {
    Chat chat;
    chat.messages.push_back({.content = text});
    const RenderedPrompt rendered = RenderChat(chat, format).value();
    prompts.push_back(GpuTokenizer().EncodeWithAdded(rendered.text, rendered.template_ranges));
  }
  return prompts;
}

namespace {

ServerConfig Sized(std::int64_t context_tokens, std::int64_t sequences) {
  ServerConfig config;
  config.device = "cuda";  // decode steps are recorded, as in a server
  config.max_model_len = context_tokens;
  config.max_num_seqs = sequences;
  return config;
}

}  // namespace

GpuServer::GpuServer(Backend& backend, std::int64_t context_tokens, std::int64_t sequences)
    : GpuServer(backend, Sized(context_tokens, sequences)) {}

GpuServer::GpuServer(Backend& backend, ServerConfig config) {
  Start(std::move(config), [&](const ServerConfig& all) { return App::StartOn(backend, all); });
}

GpuServer::GpuServer(ServerConfig config) {
  Start(std::move(config), [](const ServerConfig& all) { return App::Start(all); });
}

void GpuServer::Start(
    ServerConfig config,
    const std::function<Result<std::unique_ptr<App>>(const ServerConfig&)>& start) {
  config.model = kGpuModel;
  config.listen = "127.0.0.1:0";
  ConfigureLog(LogLevel::kWarning, LogFormat::kText);
  auto started = start(config);
  DSA_CHECK(started.ok(), "{}", std::string_view(started.error().message));
  app = std::move(started).value();
  channel = grpc::CreateChannel(fmt::format("127.0.0.1:{}", app->port()),
                                grpc::InsecureChannelCredentials());
}

double Now() {
  return static_cast<double>(SteadyClock().NowUs()) * 1e-6;
}

}  // namespace dsa::testing
