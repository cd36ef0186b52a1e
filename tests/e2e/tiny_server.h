// The whole server in this process, on the small random model, and requests to it.
#pragma once

#include "proto/completion.grpc.pb.h"
#include "server/app.h"
#include "tests/e2e/tiny_model.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace dsa::testing {

inline ServerConfig TinyConfig() {
  ServerConfig config;
  config.model = TinyModel();
  config.listen = "127.0.0.1:0";
  config.threads = 2;
  config.max_model_len = 512;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 64;
  config.max_tokens_default = 32;
  config.shutdown_timeout_s = 60;
  return config;
}

struct Server {
  explicit Server(const ServerConfig& config) : app(std::move(App::Start(config)).value()) {
    channel = grpc::CreateChannel(fmt::format("127.0.0.1:{}", app->port()),
                                  grpc::InsecureChannelCredentials());
  }
  std::unique_ptr<App> app;
  std::shared_ptr<grpc::Channel> channel;
};

// Request `number`: its own prompt of its own length, some greedy and some drawn.
inline v1::CompletionRequest Numbered(int number) {
  v1::CompletionRequest request;
  const int tokens = 5 + (number * 37) % 150;
  for (int i = 0; i < tokens; ++i) {
    request.mutable_token_ids()->add_ids((number * 131 + i * 17) % 500);
  }
  request.mutable_sampling()->set_temperature(number % 2 == 0 ? 0.0F : 0.9F);
  request.mutable_sampling()->set_seed(static_cast<std::uint64_t>(number));
  request.mutable_stop()->set_max_tokens(6 + number % 7);
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

struct Answer {
  grpc::Status status;
  std::vector<std::int64_t> ids;
  std::string text;
  v1::CompletionStreamResponse last;
};

inline Answer Ask(const std::shared_ptr<grpc::Channel>& channel,
                  const v1::CompletionRequest& request, grpc::ClientContext& rpc) {
  const auto stub = v1::CompletionService::NewStub(channel);
  const auto reader = stub->CompleteStream(&rpc, request);
  Answer answer;
  for (v1::CompletionStreamResponse part; reader->Read(&part); answer.last = part) {
    answer.ids.insert(answer.ids.end(), part.token_ids().begin(), part.token_ids().end());
    answer.text += part.text();
  }
  answer.status = reader->Finish();
  return answer;
}

inline Answer Ask(const std::shared_ptr<grpc::Channel>& channel,
                  const v1::CompletionRequest& request) {
  grpc::ClientContext rpc;
  return Ask(channel, request, rpc);
}

}  // namespace dsa::testing
