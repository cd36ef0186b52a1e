// What the checks on a GPU share: the model, the text and the server.
#pragma once

#include "kernels/backend.h"
#include "server/app.h"
#include "tokenizer/tokenizer.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/channel.h>

namespace dsa::testing {

inline const std::string kGpuModel = "models/dsa-tiny";

// "cpu" or "cuda"; ends the process with CTest's skip code where the device is not there.
std::unique_ptr<Backend> MustMake(const std::string& device);

const Tokenizer& GpuTokenizer();

// Ids of English text, from text/, `first` tokens skipped.
std::vector<TokenId> TextIds(std::size_t first, std::size_t count);

// Sentences of text/, each with its full stop.
const std::vector<std::string>& Sentences();

// Prompts of the quality gate's questions, as a chat begins: two of each haystack, definitions,
// sums.
std::vector<std::vector<TokenId>> QuestionPrompts();

// A server in this process on `backend`, its context `context_tokens`.
struct GpuServer {
  GpuServer(Backend& backend, std::int64_t context_tokens, std::int64_t sequences);
  // Model and address are set; the device's kind is what it says, "cpu" for steps op by op.
  GpuServer(Backend& backend, ServerConfig config);
  // On the devices and in the layout of `config`, which says all but model and address.
  explicit GpuServer(ServerConfig config);
  std::unique_ptr<App> app;
  std::shared_ptr<grpc::Channel> channel;

 private:
  void Start(ServerConfig config,
             const std::function<Result<std::unique_ptr<App>>(const ServerConfig&)>& start);
};

double Now();  // seconds

}  // namespace dsa::testing
