// Two data ranks on two GPUs of which one fails, throws or says nothing: tools that run this one by
// one read how the process ended, 4 or 5, and that no request was answered.
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_failure.h"
#include "kernels/forwarding_backend.h"
#include "server/app.h"
#include "tests/end_sink.h"

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <unistd.h>

namespace dsa {
namespace {

enum class GpuEnds {
  kFailsAtStart,   // while it records
  kSilentAtStart,  // likewise
  kFailsInPrompt,  // in Dispatch of a step that is not recorded
  kThrowsInPrompt,
  kSilentInPrompt,
  kFailsInReply,  // instead of a recorded step
  kSilentInReply,
  kNever,
};

class EndingGpu final : public ForwardingBackend {
 public:
  EndingGpu(Backend& inner, int rank, GpuEnds ends, const std::atomic<bool>& is_serving)
      : ForwardingBackend(inner), rank_(rank), ends_(ends), is_serving_(is_serving) {}

  void Record(GraphId graph, const std::function<void()>& body) override {
    is_recording_ = true;
    inner_.Record(graph, body);
    is_recording_ = false;
  }
  void Dispatch(const DispatchParams& params) override {
    if (is_recording_) {
      EndIf(GpuEnds::kFailsAtStart, GpuEnds::kNever, GpuEnds::kSilentAtStart);
    } else if (is_serving_) {
      EndIf(GpuEnds::kFailsInPrompt, GpuEnds::kThrowsInPrompt, GpuEnds::kSilentInPrompt);
    }
    inner_.Dispatch(params);
  }
  void Replay(GraphId graph) override {
    constexpr int kReplays = 20;
    if (is_serving_ && ++replays_ > kReplays) {
      EndIf(GpuEnds::kFailsInReply, GpuEnds::kNever, GpuEnds::kSilentInReply);
    }
    inner_.Replay(graph);
  }

 private:
  void EndIf(GpuEnds fails, GpuEnds throws, GpuEnds silent) const {
    if (rank_ != 1 || ends_ == GpuEnds::kNever) {
      return;
    }
    if (ends_ == fails) {
      DeviceFailed("planted");
    }
    if (ends_ == throws) {
      std::vector<char>().reserve(std::vector<char>().max_size() + 1);
    }
    while (ends_ == silent) {
      pause();
    }
  }

  const int rank_;
  const GpuEnds ends_;
  const std::atomic<bool>& is_serving_;
  bool is_recording_ = false;
  int replays_ = 0;
};

void ServeOnTwoGpus(GpuEnds ends) {
  ThreadGroup group(2, 2);
  std::vector<std::unique_ptr<CudaBackend>> gpus;
  for (int rank = 0; rank < 2; ++rank) {
    gpus.push_back(CudaBackend::Make(rank).value());
  }
  CudaBackend* const joined[] = {gpus[0].get(), gpus[1].get()};
  REQUIRE(CudaBackend::JoinPeers(joined, group).ok());
  std::atomic<bool> is_serving = false;
  EndingGpu first(*gpus[0], 0, ends, is_serving);
  EndingGpu second(*gpus[1], 1, ends, is_serving);
  ServerConfig config;
  config.model = "configs/models/deepseek-v32";  // a slice of random weights
  config.load = "dummy";
  config.slice = "ep32,layers=5";
  config.listen = "127.0.0.1:0";
  config.device = "cuda";
  config.data_parallel_size = 2;
  config.expert_parallel = true;
  config.max_model_len = 2048;
  config.max_num_seqs = 4;
  config.stall_timeout_s = 2;
  const auto app = App::StartOn({.group = &group, .backends = {&first, &second}}, config);
  REQUIRE(app.ok());
  is_serving = true;
  std::vector<std::shared_ptr<testing::EndSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    Request request;
    for (int t = 0; t < 200; ++t) {
      request.prompt.push_back(TokenId{(t * 17 + i) % 500});
    }
    request.stop.max_tokens = ends == GpuEnds::kNever ? 50 : 1500;
    request.stop.ignore_end = true;
    sinks.push_back(std::make_shared<testing::EndSink>());
    REQUIRE(app.value()->engine().Submit(std::move(request), sinks.back()).ok());
  }
  for (const auto& sink : sinks) {
    sink->Wait();
  }
  while (ends != GpuEnds::kNever) {
    pause();
  }
}

}  // namespace

TEST_CASE("two GPUs of which one fails while it records", "[.gpu_ending_0]") {
  ServeOnTwoGpus(GpuEnds::kFailsAtStart);
}
TEST_CASE("two GPUs of which one says nothing while it records", "[.gpu_ending_1]") {
  ServeOnTwoGpus(GpuEnds::kSilentAtStart);
}
TEST_CASE("two GPUs of which one fails in a prompt", "[.gpu_ending_2]") {
  ServeOnTwoGpus(GpuEnds::kFailsInPrompt);
}
TEST_CASE("two GPUs of which one throws in a prompt", "[.gpu_ending_3]") {
  ServeOnTwoGpus(GpuEnds::kThrowsInPrompt);
}
TEST_CASE("two GPUs of which one says nothing in a prompt", "[.gpu_ending_4]") {
  ServeOnTwoGpus(GpuEnds::kSilentInPrompt);
}
TEST_CASE("two GPUs of which one fails in a reply", "[.gpu_ending_5]") {
  ServeOnTwoGpus(GpuEnds::kFailsInReply);
}
TEST_CASE("two GPUs of which one says nothing in a reply", "[.gpu_ending_6]") {
  ServeOnTwoGpus(GpuEnds::kSilentInReply);
}
TEST_CASE("two GPUs that answer", "[.gpu_ending_7]") {
  ServeOnTwoGpus(GpuEnds::kNever);
}

}  // namespace dsa
