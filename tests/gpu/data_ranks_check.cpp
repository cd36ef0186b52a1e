// Ranks on GPUs of which one fails, throws or says nothing: tools that run this one by one read how
// the process ended, 4 or 5, and that no request was answered.  Two data ranks; DSA_ENDING_RANKS
// asks for others: "TENSOR DATA", tensor ranks of each of so many data ranks.
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_failure.h"
#include "kernels/forwarding_backend.h"
#include "server/app.h"
#include "tests/end_sink.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <unistd.h>

namespace dsa {
namespace {

struct GpuLayout {
  std::int64_t tensor_ranks = 1;  // of each data rank
  std::int64_t data_ranks = 2;
  int all() const { return static_cast<int>(tensor_ranks * data_ranks); }
};

GpuLayout AskedLayout() {
  GpuLayout layout;
  if (const char* const asked = std::getenv("DSA_ENDING_RANKS"); asked != nullptr) {
    REQUIRE(std::istringstream(asked) >> layout.tensor_ranks >> layout.data_ranks);
  }
  return layout;
}

enum class GpuEnds {
  kFailsAtStart,   // while it records
  kSilentAtStart,  // likewise
  kFailsInPrompt,  // where ranks meet in a step that is not recorded
  kThrowsInPrompt,
  kSilentInPrompt,
  kFailsInReply,  // instead of a recorded step
  kSilentInReply,
  kNever,
};

class EndingGpu final : public ForwardingBackend {
 public:
  EndingGpu(Backend& inner, GpuEnds ends, const std::atomic<bool>& is_serving)
      : ForwardingBackend(inner), ends_(ends), is_serving_(is_serving) {}

  void Record(GraphId graph, const std::function<void()>& body) override {
    is_recording_ = true;
    inner_.Record(graph, body);
    is_recording_ = false;
  }
  void Dispatch(const DispatchParams& params) override {
    EndWhereRanksMeet();
    inner_.Dispatch(params);
  }
  void AllReduce(const AllReduceParams& params) override {
    EndWhereRanksMeet();
    inner_.AllReduce(params);
  }
  void Replay(GraphId graph) override {
    constexpr int kReplays = 20;
    if (is_serving_ && ++replays_ > kReplays) {
      EndIf(GpuEnds::kFailsInReply, GpuEnds::kNever, GpuEnds::kSilentInReply);
    }
    inner_.Replay(graph);
  }

 private:
  void EndWhereRanksMeet() const {
    if (is_recording_) {
      EndIf(GpuEnds::kFailsAtStart, GpuEnds::kNever, GpuEnds::kSilentAtStart);
    } else if (is_serving_) {
      EndIf(GpuEnds::kFailsInPrompt, GpuEnds::kThrowsInPrompt, GpuEnds::kSilentInPrompt);
    }
  }
  void EndIf(GpuEnds fails, GpuEnds throws, GpuEnds silent) const {
    if (ends_ == GpuEnds::kNever) {
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

  const GpuEnds ends_;
  const std::atomic<bool>& is_serving_;
  bool is_recording_ = false;
  int replays_ = 0;
};

void ServeOnGpus(GpuEnds ends) {
  const GpuLayout layout = AskedLayout();
  const int ending = layout.all() / 2;
  ThreadGroup group(layout.all(), static_cast<int>(layout.data_ranks));
  std::vector<std::unique_ptr<CudaBackend>> gpus;
  std::vector<CudaBackend*> joined;
  for (int rank = 0; rank < layout.all(); ++rank) {
    gpus.push_back(CudaBackend::Make(rank).value());
    joined.push_back(gpus.back().get());
  }
  REQUIRE(CudaBackend::JoinPeers(joined, group).ok());
  std::atomic<bool> is_serving = false;
  std::vector<std::unique_ptr<EndingGpu>> wrapped;
  std::vector<Backend*> used;
  for (int rank = 0; rank < layout.all(); ++rank) {
    wrapped.push_back(std::make_unique<EndingGpu>(*joined[static_cast<std::size_t>(rank)],
                                                  rank == ending ? ends : GpuEnds::kNever,
                                                  is_serving));
    used.push_back(wrapped.back().get());
  }
  fmt::print("tensor ranks {}, data ranks {}, rank {} ends\n", layout.tensor_ranks,
             layout.data_ranks, ending);
  (void)std::fflush(stdout);  // the process ends without it
  ServerConfig config;
  config.model = "configs/models/deepseek-v32";  // a slice of random weights
  config.load = "dummy";
  config.slice = "ep32,layers=5";
  config.listen = "127.0.0.1:0";
  config.device = "cuda";
  config.tensor_parallel_size = layout.tensor_ranks;
  config.data_parallel_size = layout.data_ranks;
  config.expert_parallel = layout.data_ranks > 1;
  config.max_model_len = 2048;
  config.max_num_seqs = 4;
  config.stall_timeout_s = 2;
  const auto app = App::StartOn({.group = &group, .backends = used}, config);
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

TEST_CASE("GPUs of which one fails while it records", "[.gpu_ending_0]") {
  ServeOnGpus(GpuEnds::kFailsAtStart);
}
TEST_CASE("GPUs of which one says nothing while it records", "[.gpu_ending_1]") {
  ServeOnGpus(GpuEnds::kSilentAtStart);
}
TEST_CASE("GPUs of which one fails in a prompt", "[.gpu_ending_2]") {
  ServeOnGpus(GpuEnds::kFailsInPrompt);
}
TEST_CASE("GPUs of which one throws in a prompt", "[.gpu_ending_3]") {
  ServeOnGpus(GpuEnds::kThrowsInPrompt);
}
TEST_CASE("GPUs of which one says nothing in a prompt", "[.gpu_ending_4]") {
  ServeOnGpus(GpuEnds::kSilentInPrompt);
}
TEST_CASE("GPUs of which one fails in a reply", "[.gpu_ending_5]") {
  ServeOnGpus(GpuEnds::kFailsInReply);
}
TEST_CASE("GPUs of which one says nothing in a reply", "[.gpu_ending_6]") {
  ServeOnGpus(GpuEnds::kSilentInReply);
}
TEST_CASE("GPUs that answer", "[.gpu_ending_7]") {
  ServeOnGpus(GpuEnds::kNever);
}

}  // namespace dsa
