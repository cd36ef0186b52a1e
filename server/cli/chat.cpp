#include "proto/chat.grpc.pb.h"
#include "server/cli/client.h"
#include "server/cli/client_options.h"
#include "server/cli/commands.h"
#include "server/cli/interrupts.h"
#include "server/cli/report.h"
#include "server/cli/terminal_text.h"

#include <cstdio>
#include <iostream>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <unistd.h>

namespace dsa {
namespace {

struct ChatOptions {
  ClientOptions client;
  std::string system;
  bool thinking = false;
  bool whole = false;
  std::vector<std::string> words;
};

v1::ChatRequest FirstRequest(const ChatOptions& options) {
  v1::ChatRequest request;
  request.set_model(options.client.model);
  request.set_thinking(options.thinking);
  if (!options.system.empty()) {
    v1::Message& system = *request.add_messages();
    system.set_role(v1::ROLE_SYSTEM);
    system.set_content(options.system);
  }
  FillRequest(options.client, *request.mutable_sampling(), *request.mutable_stop());
  request.set_report_cost(options.client.report_cost);
  return request;
}

// One conversation with one server.
class Conversation final {
 public:
  explicit Conversation(const ChatOptions& options)
      : stub_(v1::ChatService::NewStub(Connect(options.client.address))),
        raw_(options.client.raw),
        whole_(options.whole),
        request_(FirstRequest(options)) {}

  // Asks, prints the answer as it comes, and keeps both for the next turn.  A turn that fails or is
  // cancelled is forgotten.
  grpc::Status Say(const std::string& text) {
    v1::Message& question = *request_.add_messages();
    question.set_role(v1::ROLE_USER);
    question.set_content(text);
    v1::Message answer;
    answer.set_role(v1::ROLE_ASSISTANT);
    grpc::Status status = whole_ ? Wait(answer) : Stream(answer);
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
      Print(part.reasoning_content(), part.content());
      if (std::fflush(stdout) != 0) {
        call.TryCancel();  // nobody reads on
      }
      answer.mutable_content()->append(part.content());
      answer.mutable_reasoning_content()->append(part.reasoning_content());
      answer.mutable_tool_calls()->MergeFrom(part.tool_calls());
    }
    grpc::Status status = reader->Finish();
    interrupts_.Watch(nullptr);
    PrintEnd(answer);
    if (status.ok()) {
      PrintUsage(last.usage(), last.finish_reason(), last.seed());
    }
    return status;
  }

  // The same answer in one message.
  grpc::Status Wait(v1::Message& answer) {
    grpc::ClientContext call;
    interrupts_.Watch(&call);
    v1::ChatResponse response;
    grpc::Status status = stub_->Chat(&call, request_, &response);
    interrupts_.Watch(nullptr);
    if (status.ok()) {
      answer = response.message();
      Print(answer.reasoning_content(), answer.content());
      PrintEnd(answer);
      PrintUsage(response.usage(), response.finish_reason(), response.seed());
    }
    return status;
  }

  void Print(const std::string& reasoning, const std::string& content) const {
    if (!reasoning.empty()) {
      fmt::print(stderr, "{}", ForDescriptor(reasoning, STDERR_FILENO, raw_));
    }
    fmt::print("{}", ForDescriptor(content, STDOUT_FILENO, raw_));
  }

  // The line end behind an answer, and the calls in it.
  void PrintEnd(const v1::Message& answer) const {
    if (!answer.content().empty() || !answer.reasoning_content().empty()) {
      fmt::print("\n");
      std::fflush(stdout);
    }
    for (const v1::ToolCall& tool : answer.tool_calls()) {
      fmt::print(stderr, "[calls {} {}]\n", ForDescriptor(tool.name(), STDERR_FILENO, raw_),
                 ForDescriptor(tool.arguments(), STDERR_FILENO, raw_));
    }
  }

  Interrupts interrupts_;  // before the channel, whose threads inherit its signal mask
  std::unique_ptr<v1::ChatService::Stub> stub_;
  const bool raw_;
  const bool whole_;
  v1::ChatRequest request_;
};

int Converse(Conversation& conversation) {
  fmt::print(stderr, "Ctrl-C stops an answer, Ctrl-D ends.\n");
  std::string line;
  while (fmt::print(stderr, "> "), std::getline(std::cin, line)) {
    if (line.empty()) {
      continue;
    }
    if (const Status text = CheckUtf8(line, "message"); !text.ok()) {
      fmt::print(stderr, "error: {}\n", text.error().message);
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
  for (const auto& [name, text] :
       {std::pair("--system", &options.system), std::pair("--model", &options.client.model)}) {
    const Status valid = CheckUtf8(*text, name);
    if (!valid.ok()) {
      return ReportError(valid.error());
    }
  }
  if (options.words.empty() && isatty(STDIN_FILENO) == 1) {
    Conversation conversation(options);
    return Converse(conversation);
  }
  const Result<std::string> text = ReadPrompt(options.words, "message");
  if (!text.ok()) {
    return ReportError(text.error());
  }
  Conversation conversation(options);
  const grpc::Status status = conversation.Say(text.value());
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
  command->add_option("--system", options->system, "System message");
  command->add_flag("--thinking", options->thinking,
                    "Let the model reason first; its reasoning goes to standard error");
  command->add_flag("--whole", options->whole, "Wait for the whole answer instead of a stream");
  AddClientOptions(*command, options->client);
  command->callback([options, &exit_code] { exit_code = RunChat(*options); });
}

}  // namespace dsa
