// A step that never ends: the whole server says so and its process is gone, exit code 5.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "server/app.h"
#include "tests/e2e/tiny_model.h"
#include "tests/this_program.h"

#include <chrono>

#include <catch2/catch.hpp>
#include <unistd.h>

namespace dsa {
namespace {

class HangingBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void Sample(const SampleParams& params) override {
    constexpr int kSteps = 20;  // the warm-up's and some of the request
    while (++steps_ > kSteps) {
      pause();
    }
    ForwardingBackend::Sample(params);
  }

 private:
  int steps_ = 0;
};

class SilentSink final : public TokenSink {
  void OnDelta(TokenDelta&& /*delta*/) override {}
};

}  // namespace

TEST_CASE("the server whose step hangs", "[.hanging_server]") {
  CpuBackend cpu(1);
  HangingBackend backend(cpu);
  ServerConfig config;
  config.model = testing::TinyModel();
  config.listen = "127.0.0.1:0";
  config.max_model_len = 512;
  config.stall_timeout_s = 1;
  const auto app = App::StartOn(backend, config);
  REQUIRE(app.ok());
  Request request;
  request.prompt = {TokenId{1}, TokenId{2}};
  request.stop.max_tokens = 100;
  request.stop.ignore_end = true;
  REQUIRE(app.value()->engine().Submit(request, std::make_shared<SilentSink>()).ok());
  while (true) {
    pause();
  }
}

TEST_CASE("a step that hangs ends the process with 5", "[e2e][faults]") {
  constexpr int kStalled = 5;
  const auto start = std::chrono::steady_clock::now();
  const testing::EndedProgram ended = testing::RunThisProgram("[.hanging_server]");
  CAPTURE(ended.err);
  CHECK(ended.exit_code == kStalled);
  CHECK(std::chrono::steady_clock::now() - start > std::chrono::seconds(1));
}

}  // namespace dsa
