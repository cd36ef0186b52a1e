#include "tests/abuse/victim.h"

#include "proto/completion.grpc.pb.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace dsa::testing {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTokensMax = 4000;

}  // namespace

double TokenGaps::At(double quantile) const {
  if (ms.empty()) {
    return -1;
  }
  const auto last = static_cast<double>(ms.size() - 1);
  return ms[static_cast<std::size_t>(quantile * last + 0.5)];
}

struct Victim::State {
  struct Stream {
    grpc::ClientContext rpc;
    std::unique_ptr<grpc::ClientReader<v1::CompletionStreamResponse>> reader;
    std::vector<double> gaps_ms;
    bool ended = false;  // before it was stopped
    std::thread thread;
  };

  void Read(Stream& stream) {
    v1::CompletionStreamResponse part;
    Clock::time_point last{};
    while (stream.reader->Read(&part)) {
      const Clock::time_point now = Clock::now();
      if (last != Clock::time_point()) {
        stream.gaps_ms.push_back(std::chrono::duration<double, std::milli>(now - last).count());
      } else {
        started.fetch_add(1);
        started.notify_all();
      }
      last = now;
    }
    stream.ended = !stopping.load();
    if (last != Clock::time_point()) {  // the gap in which it was stopped, which may be the longest
      stream.gaps_ms.push_back(
          std::chrono::duration<double, std::milli>(Clock::now() - last).count());
    }
    stream.reader->Finish();
    started.fetch_add(1);
    started.notify_all();
  }

  std::unique_ptr<v1::CompletionService::Stub> stub;
  std::vector<std::unique_ptr<Stream>> streams;
  std::atomic<int> started{0};
  std::atomic<bool> stopping{false};
};

Victim::Victim(std::int64_t port, int streams) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.stub = v1::CompletionService::NewStub(
      grpc::CreateChannel(fmt::format("127.0.0.1:{}", port), grpc::InsecureChannelCredentials()));
  v1::CompletionRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  request.mutable_stop()->set_max_tokens(kTokensMax);
  for (int i = 0; i < streams; ++i) {
    auto& stream = *state.streams.emplace_back(std::make_unique<State::Stream>());
    stream.reader = state.stub->CompleteStream(&stream.rpc, request);
    stream.thread = std::thread([&state, &stream] { state.Read(stream); });
  }
  for (int seen = 0; seen < streams; seen = state.started.load()) {
    state.started.wait(seen);
  }
}

Victim::~Victim() {
  Stop();
}

TokenGaps Victim::Stop() {
  State& state = *state_;
  state.stopping.store(true);
  TokenGaps gaps{.ms = {}, .all_ok = true};
  for (const auto& stream : state.streams) {
    stream->rpc.TryCancel();
    stream->thread.join();
    gaps.ms.insert(gaps.ms.end(), stream->gaps_ms.begin(), stream->gaps_ms.end());
    gaps.all_ok = gaps.all_ok && !stream->ended;
  }
  state.streams.clear();
  std::sort(gaps.ms.begin(), gaps.ms.end());
  return gaps;
}

}  // namespace dsa::testing
