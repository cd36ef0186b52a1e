// Laws of `dsa serve` and `dsa chat` as processes: start, signals, terminal.
#include "common/json.h"
#include "proto/admin.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_model.h"
#include "tests/sanitized.h"

#include <chrono>
#include <csignal>
#include <memory>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <poll.h>

namespace dsa {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::Arguments;
using testing::Ended;
using testing::Process;
using testing::RunDsa;
using testing::Streams;
using testing::TinyModel;

using SteadyTime = std::chrono::steady_clock;

std::chrono::system_clock::time_point InAMinute() {
  return std::chrono::system_clock::now() + std::chrono::minutes(1);
}

Arguments With(Arguments arguments, const Arguments& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// `dsa serve` and a channel to it.
struct Served {
  explicit Served(const std::string& listen, const Arguments& more = {})
      : process(With({"serve", "--model", TinyModel(), "--device", "cpu", "--listen", listen,
                      "--threads", "2", "--max-model-len", "8192", "--max-num-seqs", "4",
                      "--max-num-batched-tokens", "128", "--log-level", "debug"},
                     more),
                Streams::kPipes) {
    const bool ready = process.WaitForErr("\"ready\"") && process.WaitForErr("\"port\":");
    INFO(process.err());
    REQUIRE(ready);
    const std::size_t at = process.err().find("\"port\":") + 7;
    REQUIRE(process.WaitForErr("\"configuration\""));
    address = "127.0.0.1:" + std::to_string(std::stoi(process.err().substr(at)));
    // A channel of its own: one to an earlier server of this port would wait before it tries again.
    grpc::ChannelArguments arguments;
    arguments.SetInt("grpc.use_local_subchannel_pool", 1);
    channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }

  Process process;
  std::string address;
  std::shared_ptr<grpc::Channel> channel;
};

// A stream that is under way.
struct Stream {
  Stream(Served& served, int max_tokens) : stub(v1::CompletionService::NewStub(served.channel)) {
    v1::CompletionRequest request;
    for (int i = 0; i < 40; ++i) {
      request.mutable_token_ids()->add_ids(i * 7 % 500);
    }
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop()->set_max_tokens(max_tokens);
    request.mutable_stop()->set_ignore_eos(true);
    rpc.set_deadline(InAMinute());
    reader = stub->CompleteStream(&rpc, request);
    REQUIRE(reader->Read(&last));
    tokens = last.token_ids_size();
  }

  grpc::Status Finish() {
    for (v1::CompletionStreamResponse part; reader->Read(&part); last = part) {
      tokens += part.token_ids_size();
    }
    return reader->Finish();
  }

  std::unique_ptr<v1::CompletionService::Stub> stub;
  grpc::ClientContext rpc;
  std::unique_ptr<grpc::ClientReader<v1::CompletionStreamResponse>> reader;
  v1::CompletionStreamResponse last;
  int tokens = 0;
};

// Health of the whole server, pushed.
struct Watch {
  explicit Watch(Served& served) : stub(Health::NewStub(served.channel)) {
    rpc.set_deadline(InAMinute());
    reader = stub->Watch(&rpc, HealthCheckRequest());
    CHECK(Next() == HealthCheckResponse::SERVING);
  }
  ~Watch() {
    rpc.TryCancel();
    HealthCheckResponse response;
    while (reader->Read(&response)) {
    }
    (void)reader->Finish();
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  HealthCheckResponse::ServingStatus Next() {
    HealthCheckResponse response;
    return reader->Read(&response) ? response.status() : HealthCheckResponse::UNKNOWN;
  }

  std::unique_ptr<Health::Stub> stub;
  grpc::ClientContext rpc;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader;
};

}  // namespace

TEST_CASE("serve is SERVING soon after exec, and its output is empty", "[e2e]") {
  TinyModel();  // written before the clock runs
  const auto start = SteadyTime::now();
  Served served("127.0.0.1:0");
  const Ended health = RunDsa({"healthcheck", "--address", served.address}, "");
  const double seconds = std::chrono::duration<double>(SteadyTime::now() - start).count();
  CHECK(health.exit_code == 0);
  CHECK(health.out == "SERVING\n");
  WARN(fmt::format("SERVING and checked {:.2f} s after exec", seconds));
  CHECK(seconds < 10.0);  // 3 s on a machine that does nothing else
  served.process.Signal(SIGTERM);
  const Ended ended = served.process.Wait();
  CHECK(ended.exit_code == 0);
  CHECK(ended.out.empty());
  CHECK(ended.err.find("\"threads\":2,\"reason\":\"configured\"") != std::string::npos);
  // Not on a terminal: every line of the log is a JSON object.
  std::istringstream lines(ended.err);
  for (std::string line; std::getline(lines, line);) {
    CHECK(Json::parse(line).at("message").is_string());
  }
  CHECK(RunDsa({"healthcheck", "--address", served.address, "--timeout", "5"}, "").exit_code == 1);
}

TEST_CASE("SIGTERM drains: health says so, the stream completes, exit 0, the port is free",
          "[e2e]") {
  constexpr int kTokens = testing::kSanitized ? 100 : 300;
  std::string address;
  {
    Served served("127.0.0.1:0");
    address = served.address;
    Watch watch(served);
    Stream stream(served, kTokens);
    served.process.Signal(SIGTERM);
    CHECK(watch.Next() == HealthCheckResponse::NOT_SERVING);
    const grpc::Status status = stream.Finish();
    INFO(status.error_message());
    CHECK(status.ok());
    CHECK(stream.tokens == kTokens);
    CHECK(stream.last.finish_reason() == v1::FINISH_REASON_LENGTH);
    CHECK(served.process.Wait().exit_code == 0);
  }
  Served again(address);
  Stream stream(again, 3);
  CHECK(stream.Finish().ok());
  // A second server there is refused.
  const Ended second = RunDsa({"serve", "--model", TinyModel(), "--listen", address,
                               "--max-model-len", "256", "--max-num-seqs", "1"},
                              "");
  CHECK(second.exit_code == 2);
  CHECK(second.err.find(address) != std::string::npos);
  // Before anything of the model is read.
  const Ended early = RunDsa({"serve", "--model", "/nowhere", "--listen", address}, "");
  CHECK(early.exit_code == 2);
  CHECK(early.err ==
        fmt::format("error: listen: {} cannot be bound: another program listens there\n", address));
  again.process.Signal(SIGINT);
  CHECK(again.process.Wait().exit_code == 0);
}

TEST_CASE("a second SIGTERM stops at once", "[e2e]") {
  constexpr int kTokens = 8000;
  Served served("127.0.0.1:0");
  Watch watch(served);
  Stream stream(served, kTokens);
  served.process.Signal(SIGTERM);
  REQUIRE(watch.Next() == HealthCheckResponse::NOT_SERVING);  // it drains
  served.process.Signal(SIGTERM);
  CHECK(served.process.Wait().exit_code == 1);
  CHECK_FALSE(stream.Finish().ok());
  CHECK(stream.tokens < kTokens);
}

TEST_CASE("chat answers an argument and standard input alike", "[e2e]") {
  Served served("127.0.0.1:0");
  const Arguments base = {"chat",         "--address", served.address,  "--seed", "5",
                          "--max-tokens", "12",        "--temperature", "0.7"};
  Arguments with_words = base;
  with_words.insert(with_words.end(), {"Hello", "there"});
  const Ended first = RunDsa(with_words, "");
  INFO(first.err);
  REQUIRE(first.exit_code == 0);
  CHECK(first.out.back() == '\n');
  CHECK(first.err.find("12 answered (0 reasoning)") != std::string::npos);
  CHECK(first.err.find("seed 5") != std::string::npos);
  const Ended second = RunDsa(base, "Hello there");
  CHECK(second.exit_code == 0);
  CHECK(second.out == first.out);
  // Reasoning is no part of the answer.
  Arguments thinking = with_words;
  thinking.emplace_back("--thinking");
  CHECK(RunDsa(thinking, "").err.find("12 answered (12 reasoning)") != std::string::npos);
  // The filters reach the server: with one candidate the seed is without effect.
  Arguments narrow = with_words;
  narrow.insert(narrow.end(), {"--top-k", "1"});
  Arguments greedy = with_words;
  greedy.insert(greedy.end(), {"--min-p", "1"});
  const Ended top_k = RunDsa(narrow, "");
  CHECK(top_k.exit_code == 0);
  CHECK(top_k.out == RunDsa(greedy, "").out);
  CHECK(top_k.out != first.out);
  // What the server refuses is the user's to mend; nothing is on standard output.
  Arguments wrong = with_words;
  wrong.insert(wrong.end(), {"--model", "other"});
  const Ended refused = RunDsa(wrong, "");
  CHECK(refused.exit_code == 2);
  CHECK(refused.out.empty());
  CHECK(refused.err.rfind("error: NOT_FOUND: model: \"other\"", 0) == 0);
  CHECK(RunDsa(base, "").exit_code == 2);  // an empty message
  // Neither prompts nor answers are logged, not even for who looks for faults.
  served.process.Signal(SIGTERM);
  const std::string log = served.process.Wait().err;
  CHECK(log.find("ChatService/ChatStream") != std::string::npos);
  CHECK(log.find("Hello") == std::string::npos);
  CHECK(log.find(first.out.substr(0, first.out.size() - 1)) == std::string::npos);
}

TEST_CASE("Ctrl-C stops the answer and not the program", "[e2e]") {
  Served served("127.0.0.1:0");
  Process chat({"chat", "--address", served.address, "--temperature", "0", "--max-tokens", "8000"},
               Streams::kTerminal);
  REQUIRE(chat.WaitForOut("> ", 0));
  const std::size_t before = chat.out().size();
  chat.Write("Hello\n");
  REQUIRE(chat.WaitForOut("Hello\r\n", before));
  const std::size_t echoed = chat.out().find("Hello\r\n", before) + 7;
  // Some of the answer.
  while (chat.out().size() < echoed + 20) {
    REQUIRE(chat.WaitForOut("", chat.out().size() + 1));
  }
  chat.Write("\x03");
  INFO(chat.out());
  REQUIRE(chat.WaitForOut("(stopped)\r\n> ", echoed));
  // Nothing runs: the program still does not end, and the next turn is answered.
  const std::size_t stopped = chat.out().size();
  chat.Write("\x03");
  REQUIRE(chat.WaitForOut("(Ctrl-D ends)\r\n> ", stopped));
  chat.Write("\x04");
  const Ended ended = chat.Wait();
  CHECK(ended.exit_code == 0);
  // The server saw the cancellation and is well.
  REQUIRE(served.process.WaitForErr("\"code\":\"CANCELLED\""));
  Stream stream(served, 3);
  CHECK(stream.Finish().ok());
}

// Something that is logged, `times` times.
int CountAnswered(Served& served, int times) {
  const auto stub = v1::AdminService::NewStub(served.channel);
  int answered = 0;
  for (int i = 0; i < times; ++i) {
    grpc::ClientContext rpc;
    rpc.set_deadline(InAMinute());
    v1::Load load;
    answered += stub->GetLoad(&rpc, {}, &load).ok() ? 1 : 0;
  }
  return answered;
}

TEST_CASE("a log that nobody reads, or can read any more, holds up neither requests nor the end",
          "[e2e]") {
  constexpr int kRequests = 2000;  // some 300 KB of lines; a pipe holds 64
  Served served("127.0.0.1:0");
  const bool gone = GENERATE(false, true);
  CAPTURE(gone);
  if (gone) {
    served.process.CloseErr();
  }
  CHECK(CountAnswered(served, kRequests) == kRequests);
  CHECK(Stream(served, 3).Finish().ok());
  const auto asked = SteadyTime::now();
  served.process.Signal(SIGTERM);
  CHECK(served.process.WaitUnread() == 0);
  CHECK(SteadyTime::now() - asked < std::chrono::seconds(10));
}

TEST_CASE("a log that cannot be written turns health until it can, and ends nothing", "[e2e]") {
  Served served("127.0.0.1:0", {"--stall-timeout-s", "2"});
  Watch watch(served);
  CHECK(CountAnswered(served, 1000) == 1000);  // more than the pipe holds
  CHECK(watch.Next() == HealthCheckResponse::NOT_SERVING);
  CHECK(CountAnswered(served, 1) == 1);
  REQUIRE(served.process.WaitForErr("\"part\":\"log\""));
  CHECK(watch.Next() == HealthCheckResponse::SERVING);
  served.process.Signal(SIGTERM);
  CHECK(served.process.Wait().exit_code == 0);
}

TEST_CASE("signals that mean something to other servers end no stream", "[e2e]") {
  constexpr int kTokens = testing::kSanitized ? 50 : 100;
  Served served("127.0.0.1:0");
  Stream stream(served, kTokens);
  for (const int signal :
       {SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ, SIGWINCH, SIGCHLD, SIGURG, SIGCONT}) {
    served.process.Signal(signal);
    CHECK(CountAnswered(served, 1) == 1);
  }
  CHECK(stream.Finish().ok());
  CHECK(stream.tokens == kTokens);
  served.process.Signal(SIGTERM);
  CHECK(served.process.Wait().exit_code == 0);
}

TEST_CASE("SIGHUP drains, more than one too, unless it was ignored at the start", "[e2e]") {
  constexpr int kTokens = testing::kSanitized ? 100 : 300;
  const bool ignored = GENERATE(false, true);
  CAPTURE(ignored);
  const auto before = signal(SIGHUP, ignored ? SIG_IGN : SIG_DFL);
  Served served("127.0.0.1:0");
  signal(SIGHUP, before);
  Stream stream(served, kTokens);
  served.process.Signal(SIGHUP);
  if (ignored) {
    CHECK(CountAnswered(served, 10) == 10);
    served.process.Signal(SIGTERM);
  } else {
    REQUIRE(served.process.WaitForErr("\"draining\""));
    served.process.Signal(SIGHUP);  // a terminal that goes away says so twice
  }
  CHECK(stream.Finish().ok());
  CHECK(stream.tokens == kTokens);
  CHECK(served.process.Wait().exit_code == 0);
}

TEST_CASE("standard output waits for a slow reader, and says that a reader is gone", "[e2e]") {
  std::string input = R"({"text": ")";  // one line that a pipe holds, and an answer that none does
  for (int i = 0; i < 30'000; ++i) {
    input += {static_cast<char>('a' + i % 26), ' '};
  }
  input += "\"}\n";
  const Arguments arguments = {"tokenize", "--tokenizer",
                               std::string(TinyModel()) + "/tokenizer.json"};
  const std::string expected = RunDsa(arguments, input).out;
  REQUIRE(expected.size() > 100'000);
  Process slow(arguments, Streams::kShared);
  slow.Write(input);
  slow.CloseInput();
  poll(nullptr, 0, 300);  // it is stuck by now
  const Ended ended = slow.Wait();
  CHECK(ended.exit_code == 0);
  CHECK(ended.out == expected);
  Process closed(arguments, Streams::kPipes);
  closed.CloseOut();
  closed.Write(input);
  closed.CloseInput();
  const Ended refused = closed.Wait();
  CHECK(refused.exit_code == 1);
  CHECK(refused.err == "error: standard output: Broken pipe\n");
  Process none("exec >&-", {"version"});
  const Ended nowhere = none.Wait();
  CHECK(nowhere.exit_code == 1);
  CHECK(nowhere.err == "error: standard output: Bad file descriptor\n");
}

}  // namespace dsa
