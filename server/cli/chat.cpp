#include "proto/chat.grpc.pb.h"
#include "server/cli/client.h"
#include "server/cli/commands.h"
#include "server/cli/interrupts.h"
#include "server/cli/report.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

namespace dsa {
namespace {

struct ChatOptions {
  std::string address{kDefaultAddress};
  std::string model;
  std::string system;
  bool thinking = false;
  std::optional<std::int64_t> max_tokens;
  std::optional<std::int64_t> min_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<std::int64_t> top_k;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> words;
};

v1::ChatRequest FirstRequest(const ChatOptions& options) {
  v1::ChatRequest request;
  request.set_model(options.model);
  request.set_thinking(options.thinking);
  if (!options.system.empty()) {
    v1::Message& system = *request.add_messages();
    system.set_role(v1::ROLE_SYSTEM);
    system.set_content(options.system);
  }
  if (options.max_tokens) {
    request.mutable_stop()->set_max_tokens(*options.max_tokens);
  }
  if (options.min_tokens) {
    request.mutable_stop()->set_min_tokens(*options.min_tokens);
  }
  if (options.temperature) {
    request.mutable_sampling()->set_temperature(*options.temperature);
  }
  if (options.top_p) {
    request.mutable_sampling()->set_top_p(*options.top_p);
  }
  if (options.min_p) {
    request.mutable_sampling()->set_min_p(*options.min_p);
  }
  if (options.top_k) {
    request.mutable_sampling()->set_top_k(*options.top_k);
  }
  if (options.seed) {
    request.mutable_sampling()->set_seed(*options.seed);
  }
  return request;
}

void PrintUsage(const v1::ChatStreamResponse& last) {
  const v1::Usage& usage = last.usage();
  std::string finish = v1::FinishReason_Name(last.finish_reason());
  finish = finish.substr(std::string_view("FINISH_REASON_").size());
  const double per_second =
      usage.decode_ms() > 0
          ? 1000.0 * static_cast<double>(usage.completion_tokens() - 1) / usage.decode_ms()
          : 0.0;
  fmt::print(stderr,
             "[{} prompt tokens ({} cached), {} answered ({} reasoning); queue {:.0f} ms, prefill "
             "{:.0f} ms, decode {:.0f} ms, {:.1f} tokens/s; {}; seed {}]\n",
             usage.prompt_tokens(), usage.cache_hit_tokens(), usage.completion_tokens(),
             usage.reasoning_tokens(), usage.queue_ms(), usage.prefill_ms(), usage.decode_ms(),
             per_second, finish, last.seed());
}

// One conversation with one server.
class Conversation final {
 public:
  explicit Conversation(const ChatOptions& options)
      : stub_(v1::ChatService::NewStub(Connect(options.address))),
        request_(FirstRequest(options)) {}

  // Asks, prints the answer as it comes, and keeps both for the next turn.  A turn that fails or is
  // cancelled is forgotten.
  grpc::Status Say(const std::string& text) {
    v1::Message& question = *request_.add_messages();
    question.set_role(v1::ROLE_USER);
    question.set_content(text);
    v1::Message answer;
    answer.set_role(v1::ROLE_ASSISTANT);
    grpc::Status status = Stream(answer);
    if (status.ok()) {
      *request_.add_messages() = std::move(answer);
    } else {
      request_.mutable_messages()->RemoveLast();
    }
    return status;
  }

 private:
  grpc::Status Stream(v1::Message& answer) {
    grpc::ClientContext call;
    interrupts_.Watch(&call);
    const auto reader = stub_->ChatStream(&call, request_);
    v1::ChatStreamResponse last;
    for (v1::ChatStreamResponse part; reader->Read(&part); last = std::move(part)) {
      if (!part.reasoning_content().empty()) {
        fmt::print(stderr, "{}", part.reasoning_content());
      }
      fmt::print("{}", part.content());
      if (std::fflush(stdout) != 0) {
        call.TryCancel();  // nobody reads on
      }
      answer.mutable_content()->append(part.content());
      answer.mutable_reasoning_content()->append(part.reasoning_content());
      answer.mutable_tool_calls()->MergeFrom(part.tool_calls());
    }
    grpc::Status status = reader->Finish();
    interrupts_.Watch(nullptr);
    if (!answer.content().empty() || !answer.reasoning_content().empty()) {
      fmt::print("\n");
      std::fflush(stdout);
    }
    if (status.ok()) {
      PrintUsage(last);
    }
    return status;
  }

  Interrupts interrupts_;  // before the channel, whose threads inherit its signal mask
  std::unique_ptr<v1::ChatService::Stub> stub_;
  v1::ChatRequest request_;
};

int Converse(Conversation& conversation) {
  fmt::print(stderr, "Ctrl-C stops an answer, Ctrl-D ends.\n");
  std::string line;
  while (fmt::print(stderr, "> "), std::getline(std::cin, line)) {
    if (line.empty()) {
      continue;
    }
    const grpc::Status status = conversation.Say(line);
    if (status.error_code() == grpc::StatusCode::CANCELLED) {
      fmt::print(stderr, "(stopped)\n");
    } else if (!status.ok()) {
      FailWith(status);
    }
  }
  fmt::print(stderr, "\n");
  return 0;
}

int RunChat(const ChatOptions& options) {
  Conversation conversation(options);
  std::string text = fmt::format("{}", fmt::join(options.words, " "));
  if (options.words.empty()) {
    if (isatty(STDIN_FILENO) == 1) {
      return Converse(conversation);
    }
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  if (text.empty()) {
    return ReportError(InvalidArgument("message: empty"));
  }
  const grpc::Status status = conversation.Say(text);
  if (std::ferror(stdout) != 0) {
    return 1;  // and FlushOutput says why
  }
  return status.ok() ? 0 : FailWith(status);
}

}  // namespace

void AddChatCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("chat", "Chat with a server");
  auto options = std::make_shared<ChatOptions>();
  command->add_option("message", options->words,
                      "What to say. Without it: standard input, or a conversation on a terminal");
  command->add_option("--address", options->address, "Server")
      ->check(NotEmpty())
      ->capture_default_str();
  command->add_option("--model", options->model, "Id of the model; empty: the one served");
  command->add_option("--system", options->system, "System message");
  command->add_flag("--thinking", options->thinking,
                    "Let the model reason first; its reasoning goes to standard error");
  command->add_option("--max-tokens", options->max_tokens, "Tokens of an answer at most")
      ->check(WholeNumber());
  command->add_option("--min-tokens", options->min_tokens, "Tokens before an end id may come")
      ->check(WholeNumber());
  command->add_option("--temperature", options->temperature, "[0, 2]; 0 is greedy");
  command->add_option("--top-p", options->top_p, "(0, 1]; 1 keeps all");
  command->add_option("--min-p", options->min_p, "[0, 1]; 0 keeps all");
  command->add_option("--top-k", options->top_k, "The k most likely; 0 keeps all")
      ->check(WholeNumber());
  command->add_option("--seed", options->seed, "Of the random numbers; absent: drawn")
      ->check(Unsigned());
  command->callback([options, &exit_code] { exit_code = RunChat(*options); });
}

}  // namespace dsa
