#include "tests/soak/traffic.h"

#include "proto/admin.grpc.pb.h"
#include "proto/chat.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "tests/api/relay.h"
#include "tests/api/test_server.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <thread>

#include <arpa/inet.h>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace dsa::testing {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;

constexpr std::int64_t kUnexpectedPrinted = 20;

std::string Outcome(const grpc::Status& status, std::initializer_list<StatusCode> allowed) {
  if (std::find(allowed.begin(), allowed.end(), status.error_code()) != allowed.end()) {
    return "";
  }
  return fmt::format("code {}: {}", static_cast<int>(status.error_code()), status.error_message());
}

// A connection of its own, which ends with the channel.
std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::int64_t PortOf(const std::string& address) {
  return std::stoll(address.substr(address.rfind(':') + 1));
}

// Ends a call from another thread after a while.
class LaterCancel final {
 public:
  LaterCancel(grpc::ClientContext& rpc, milliseconds delay)
      : thread_([&rpc, delay] {
          Pause(delay);
          rpc.TryCancel();
        }) {}
  ~LaterCancel() { thread_.join(); }
  LaterCancel(const LaterCancel&) = delete;
  LaterCancel& operator=(const LaterCancel&) = delete;

 private:
  std::thread thread_;
};

class Client final {
 public:
  Client(std::string address, std::uint64_t seed) : address_(std::move(address)), random_(seed) {}

  std::int64_t Draw(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  std::mt19937_64& random() { return random_; }

  // Empty, or how the call ended instead.
  std::string Call(CallKind kind);

 private:
  std::shared_ptr<grpc::Channel> Channel();
  v1::CompletionRequest Completion(std::int64_t tokens_max);
  v1::ChatRequest Conversation();
  std::string Words(std::int64_t count);
  template <typename Stub, typename Request>
  std::string Read(Stub& stub, const Request& request, milliseconds pause);

  std::string Unary(bool ended_early);
  std::string Stream(milliseconds pause);
  std::string Chat();
  std::string Cancelled();
  std::string Cut();
  std::string Text();
  std::string LargeText();
  std::string Refused();
  std::string Operator();
  std::string Handshake();
  std::string Unread();

  const std::string address_;
  std::mt19937_64 random_;
  std::shared_ptr<grpc::Channel> channel_;
};

std::shared_ptr<grpc::Channel> Client::Channel() {
  if (channel_ == nullptr || Draw(0, 19) == 0) {
    channel_ = Dial(address_);
  }
  return channel_;
}

v1::CompletionRequest Client::Completion(std::int64_t tokens_max) {
  v1::CompletionRequest request;
  const std::int64_t length = Draw(0, 9) == 0 ? Draw(200, 900) : Draw(1, 40);
  const bool shared = Draw(0, 2) == 0;  // a prefix that the cache may hold
  for (std::int64_t i = 0; i < length; ++i) {
    request.mutable_token_ids()->add_ids(shared ? i % 200 : Draw(0, 499));
  }
  request.mutable_sampling()->set_temperature(Draw(0, 1) == 0 ? 0.0F : 1.0F);
  request.mutable_stop()->set_max_tokens(Draw(1, tokens_max));
  request.mutable_stop()->set_ignore_eos(true);
  if (Draw(0, 3) == 0) {
    request.set_logprobs(true);
    request.set_top_logprobs(Draw(0, 20));
  }
  return request;
}

std::string Client::Words(std::int64_t count) {
  std::string text;
  for (std::int64_t i = 0; i < count; ++i) {
    text += fmt::format("{} ", Draw(0, 1'000'000));
  }
  return text;
}

v1::ChatRequest Client::Conversation() {
  v1::ChatRequest request;
  v1::Message& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content(Words(Draw(1, 20)));
  request.set_thinking(Draw(0, 1) == 0);
  if (Draw(0, 3) == 0) {
    request.add_tools()->set_function_json(
        R"({"name": "f", "description": "", "parameters": {"type": "object"}})");
  }
  if (Draw(0, 2) == 0) {
    request.mutable_stop()->add_stop("e");
  }
  request.mutable_stop()->set_max_tokens(Draw(1, 24));
  return request;
}

template <typename Reader, typename Part>
grpc::Status ReadAll(Reader& reader, Part& part, milliseconds pause) {
  while (reader.Read(&part)) {
    Pause(pause);
  }
  return reader.Finish();
}

std::string Client::Unary(bool ended_early) {
  grpc::ClientContext rpc;
  v1::CompletionResponse response;
  const v1::CompletionRequest request = Completion(24);
  const auto stub = v1::CompletionService::NewStub(Channel());
  if (!ended_early) {
    return Outcome(stub->Complete(&rpc, request, &response), {StatusCode::OK});
  }
  rpc.set_deadline(std::chrono::system_clock::now() + milliseconds(Draw(0, 40)));
  return Outcome(stub->Complete(&rpc, request, &response),
                 {StatusCode::OK, StatusCode::DEADLINE_EXCEEDED});
}

std::string Client::Stream(milliseconds pause) {
  grpc::ClientContext rpc;
  const auto reader =
      v1::CompletionService::NewStub(Channel())->CompleteStream(&rpc, Completion(24));
  v1::CompletionStreamResponse part;
  return Outcome(ReadAll(*reader, part, pause), {StatusCode::OK});
}

std::string Client::Chat() {
  grpc::ClientContext rpc;
  const auto stub = v1::ChatService::NewStub(Channel());
  if (Draw(0, 1) == 0) {
    v1::ChatResponse response;
    return Outcome(stub->Chat(&rpc, Conversation(), &response), {StatusCode::OK});
  }
  const auto reader = stub->ChatStream(&rpc, Conversation());
  v1::ChatStreamResponse part;
  return Outcome(ReadAll(*reader, part, milliseconds(0)), {StatusCode::OK});
}

std::string Client::Cancelled() {
  grpc::ClientContext rpc;
  const auto stub = v1::CompletionService::NewStub(Channel());
  const LaterCancel cancel(rpc, milliseconds(Draw(0, 30)));
  if (Draw(0, 1) == 0) {
    v1::CompletionResponse response;
    return Outcome(stub->Complete(&rpc, Completion(100), &response),
                   {StatusCode::OK, StatusCode::CANCELLED});
  }
  const auto reader = stub->CompleteStream(&rpc, Completion(100));
  v1::CompletionStreamResponse part;
  return Outcome(ReadAll(*reader, part, milliseconds(0)), {StatusCode::OK, StatusCode::CANCELLED});
}

std::string Client::Cut() {
  Relay relay(PortOf(address_));
  const auto channel = Dial(fmt::format("127.0.0.1:{}", relay.port()));
  grpc::ClientContext rpc;
  const auto reader =
      v1::CompletionService::NewStub(channel)->CompleteStream(&rpc, Completion(200));
  v1::CompletionStreamResponse part;
  (void)reader->Read(&part);
  relay.Cut();
  return Outcome(ReadAll(*reader, part, milliseconds(0)),
                 {StatusCode::OK, StatusCode::UNAVAILABLE});
}

std::string Client::Text() {
  grpc::ClientContext rpc;
  const auto stub = v1::TokenService::NewStub(Channel());
  if (Draw(0, 1) == 0) {
    v1::TokenizeRequest request;
    request.set_text(Words(Draw(0, 50)));
    v1::TokenizeResponse response;
    return Outcome(stub->Tokenize(&rpc, request, &response), {StatusCode::OK});
  }
  v1::RenderRequest request;
  *request.mutable_conversation()->mutable_messages() = Conversation().messages();
  v1::RenderResponse response;
  return Outcome(stub->Render(&rpc, request, &response), {StatusCode::OK});
}

std::string Client::LargeText() {
  grpc::ClientContext rpc;
  v1::CountTokensRequest request;
  request.set_text(Words(Draw(3000, 50000)));
  v1::CountTokensResponse response;
  return Outcome(v1::TokenService::NewStub(Channel())->CountTokens(&rpc, request, &response),
                 {StatusCode::OK, StatusCode::INVALID_ARGUMENT});
}

std::string Client::Refused() {
  grpc::ClientContext rpc;
  v1::CompletionResponse response;
  v1::CompletionRequest request = Completion(10);
  if (Draw(0, 1) == 0) {
    request.mutable_token_ids()->add_ids(1 << 30);
  } else {
    request.mutable_sampling()->set_temperature(-1);
  }
  return Outcome(v1::CompletionService::NewStub(Channel())->Complete(&rpc, request, &response),
                 {StatusCode::INVALID_ARGUMENT});
}

std::string Client::Operator() {
  grpc::ClientContext rpc;
  const std::int64_t what = Draw(0, 3);
  if (what < 2) {
    const auto stub = grpc::health::v1::Health::NewStub(Channel());
    grpc::health::v1::HealthCheckResponse response;
    if (what == 0) {
      return Outcome(stub->Check(&rpc, {}, &response), {StatusCode::OK});
    }
    const auto reader = stub->Watch(&rpc, {});
    (void)reader->Read(&response);
    rpc.TryCancel();
    return Outcome(ReadAll(*reader, response, milliseconds(0)), {StatusCode::CANCELLED});
  }
  const auto stub = v1::AdminService::NewStub(Channel());
  if (what == 2) {
    v1::Load load;
    return Outcome(stub->GetLoad(&rpc, {}, &load), {StatusCode::OK});
  }
  v1::AbortRequest request;
  request.set_request_id("nobody");
  v1::AbortResponse response;
  return Outcome(stub->Abort(&rpc, request, &response), {StatusCode::OK});
}

std::string Client::Handshake() {
  static constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  static constexpr std::string_view kSettings{"\0\0\0\4\0\0\0\0\0", 9};
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(PortOf(address_)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string outcome;
  if (connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string whole = std::string(kPreface) + std::string(kSettings);
    const std::array<std::string, 4> texts = {
        "", whole.substr(0, static_cast<std::size_t>(Draw(1, 23))), "GET / HTTP/1.1\r\n\r\n",
        whole};
    const std::string& text = texts[static_cast<std::size_t>(Draw(0, 3))];
    (void)send(connection, text.data(), text.size(), MSG_NOSIGNAL);
    Pause(milliseconds(Draw(0, 50)));
  } else {
    outcome = "cannot connect";
  }
  close(connection);
  return outcome;
}

std::string Client::Unread() {
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // the library reads no more than 64 KiB ahead
  const auto channel =
      grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
  v1::CompletionRequest request = Completion(1);
  request.set_logprobs(true);
  request.set_top_logprobs(20);
  request.mutable_stop()->set_max_tokens(1500);
  grpc::ClientContext rpc;
  const auto reader = v1::CompletionService::NewStub(channel)->CompleteStream(&rpc, request);
  v1::CompletionStreamResponse part;
  (void)reader->Read(&part);
  // Three times as long as a write may be pending: a server that others keep from its CPU takes
  // some time to say as much as the library reads ahead.
  Pause(std::chrono::seconds(90));
  return Outcome(ReadAll(*reader, part, milliseconds(0)), {StatusCode::CANCELLED});
}

std::string Client::Call(CallKind kind) {
  switch (kind) {
    case CallKind::kUnary: return Unary(false);
    case CallKind::kStream: return Stream(milliseconds(0));
    case CallKind::kChat: return Chat();
    case CallKind::kCancelled: return Cancelled();
    case CallKind::kDeadline: return Unary(true);
    case CallKind::kCut: return Cut();
    case CallKind::kSlow: return Stream(milliseconds(100));
    case CallKind::kText: return Text();
    case CallKind::kLargeText: return LargeText();
    case CallKind::kRefused: return Refused();
    case CallKind::kOperator: return Operator();
    case CallKind::kHandshake: return Handshake();
    case CallKind::kUnread: return Unread();
  }
  return "no such kind";
}

}  // namespace

std::string_view NameOf(CallKind kind) {
  static constexpr std::array<std::string_view, kCallKinds> kNames = {
      "unary", "stream",     "chat",    "cancelled", "deadline",  "cut",   "slow",
      "text",  "large text", "refused", "operator",  "handshake", "unread"};
  return kNames[static_cast<std::size_t>(kind)];
}

void Tally::Add(CallKind kind, const std::string& unexpected) {
  const std::lock_guard lock(mutex_);
  ++counts_[static_cast<std::size_t>(kind)];
  if (!unexpected.empty()) {
    ++unexpected_count_;
    if (unexpected_count_ <= kUnexpectedPrinted) {
      fmt::print("       {}: {}\n", NameOf(kind), unexpected);
    }
  }
}

std::array<std::int64_t, kCallKinds> Tally::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

std::int64_t Tally::unexpected_count() const {
  const std::lock_guard lock(mutex_);
  return unexpected_count_;
}

void RunClient(const ClientOptions& options, Tally& tally) {
  Client client(options.address, options.seed);
  std::exponential_distribution<double> pauses(1.0 /
                                               static_cast<double>(options.mean_pause.count()));
  while (true) {
    const auto pause =
        std::chrono::microseconds(static_cast<std::int64_t>(pauses(client.random())));
    if (std::chrono::steady_clock::now() + pause >= options.end) {
      return;
    }
    Pause(pause);
    const CallKind kind = options.kinds[static_cast<std::size_t>(
        client.Draw(0, static_cast<std::int64_t>(options.kinds.size()) - 1))];
    tally.Add(kind, client.Call(kind));
  }
}

bool BecomesIdle(const std::string& address) {
  const auto stub = v1::AdminService::NewStub(Dial(address));
  for (int attempt = 0; attempt < 200; ++attempt) {
    grpc::ClientContext rpc;
    v1::Load load;
    if (stub->GetLoad(&rpc, {}, &load).ok() && load.waiting() == 0 && load.running() == 0 &&
        load.blocks_referenced() == 0) {
      return true;
    }
    Pause(milliseconds(100));
  }
  return false;
}

}  // namespace dsa::testing
