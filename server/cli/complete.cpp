// `dsa complete`: continues a text or token ids on a server, without any chat format.
#include "proto/completion.grpc.pb.h"
#include "server/cli/client.h"
#include "server/cli/client_options.h"
#include "server/cli/commands.h"
#include "server/cli/interrupts.h"
#include "server/cli/offline_command.h"
#include "server/cli/report.h"
#include "server/cli/terminal_text.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <unistd.h>

namespace dsa {
namespace {

struct CompleteOptions {
  ClientOptions client;
  std::vector<std::string> words;
  std::string ids;
  bool special = false;
  bool print_ids = false;
};

Result<v1::CompletionRequest> CompletionOf(const CompleteOptions& options) {
  v1::CompletionRequest request;
  DSA_RETURN_IF_ERROR(CheckUtf8(options.client.model, "--model"));
  request.set_model(options.client.model);
  FillRequest(options.client, *request.mutable_sampling(), *request.mutable_stop());
  request.set_report_cost(options.client.report_cost);
  if (!options.ids.empty()) {
    DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ParseIds(options.ids));
    for (const TokenId id : ids) {
      request.mutable_token_ids()->add_ids(Value(id));
    }
    return request;
  }
  DSA_ASSIGN_OR_RETURN(*request.mutable_text(), ReadPrompt(options.words, "text"));
  request.set_parse_special(options.special);
  return request;
}

int RunComplete(const CompleteOptions& options) {
  const Result<v1::CompletionRequest> request = CompletionOf(options);
  if (!request.ok()) {
    return ReportError(request.error());
  }
  Interrupts interrupts;  // before the channel, whose threads inherit its signal mask
  const auto stub = v1::CompletionService::NewStub(Connect(options.client.address));
  grpc::ClientContext call;
  interrupts.Watch(&call);
  const auto reader = stub->CompleteStream(&call, request.value());
  v1::CompletionStreamResponse last;
  bool any = false;
  for (v1::CompletionStreamResponse part; reader->Read(&part); last = std::move(part)) {
    if (options.print_ids) {
      for (const std::int64_t id : part.token_ids()) {
        fmt::print("{}{}", any ? "," : "", id);
        any = true;
      }
    } else {
      fmt::print("{}", ForDescriptor(part.text(), STDOUT_FILENO, options.client.raw));
      any = any || !part.text().empty();
    }
    if (std::fflush(stdout) != 0) {
      call.TryCancel();  // nobody reads on
    }
  }
  const grpc::Status status = reader->Finish();
  interrupts.Watch(nullptr);
  if (any) {
    fmt::print("\n");
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return 1;  // and FlushOutput says why
  }
  if (!status.ok()) {
    return FailWith(status);
  }
  PrintUsage(last.usage(), last.finish_reason(), last.seed());
  return 0;
}

}  // namespace

void AddCompleteCommand(CLI::App& app, int& exit_code) {
  CLI::App* command =
      app.add_subcommand("complete", "Continue a text on a server, without any chat format");
  auto options = std::make_shared<CompleteOptions>();
  CLI::Option* words = command->add_option(
      "text", options->words, "What to continue. Without it: standard input, all of it");
  command->add_option("--ids", options->ids, "Token ids instead: 5,17,3 or @FILE with the same")
      ->excludes(words);
  command->add_flag("--special", options->special,
                    "Control tokens in the text, such as <｜User｜>, are matched");
  command->add_flag("--print-ids", options->print_ids,
                    "Print the ids of the answer instead of its text");
  AddClientOptions(*command, options->client);
  command->callback([options, &exit_code] { exit_code = RunComplete(*options); });
}

}  // namespace dsa
