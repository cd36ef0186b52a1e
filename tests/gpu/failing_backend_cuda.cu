// A kernel that traps, queued like any other: the CUDA context is lost when the stream gets there.
// And one that never ends.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/forwarding_backend.h"
#include "tests/e2e/failing_backend.h"
#include "tests/gpu/hanging_backend.h"

#include <cstdio>
#include <cstdlib>
#include <memory>

namespace dsa::testing {
namespace {

constexpr int kSkipped = 77;

__global__ void TrapKernel() {
  asm volatile("trap;");
}

__global__ void SpinKernel() {
  while (true) {
    __nanosleep(1000);
  }
}

// Queues a kernel behind some step.
class Failing final : public ForwardingBackend {
 public:
  Failing(CudaBackend& inner, void (*kernel)())
      : ForwardingBackend(inner), stream_(inner.stream()), kernel_(kernel) {}

  void Sample(const SampleParams& params) override {
    ForwardingBackend::Sample(params);
    Step();
  }
  void Record(GraphId graph, const std::function<void()>& body) override {
    is_recording_ = true;
    ForwardingBackend::Record(graph, body);
    is_recording_ = false;
  }
  void Replay(GraphId graph) override {
    ForwardingBackend::Replay(graph);
    Step();
  }

 private:
  void Step() {
    if (!is_recording_ && ++steps_ == kStepsBeforeFailure) {
      kernel_<<<1, 1, 0, stream_>>>();
    }
  }

  CUstream_st* const stream_;
  void (*const kernel_)();
  bool is_recording_ = false;
  int steps_ = 0;
};

std::unique_ptr<CudaBackend> MustMakeCuda() {
  auto backend = CudaBackend::Make(0);
  if (!backend.ok()) {
    std::fprintf(stderr, "skipped: %s\n", backend.error().message.c_str());
    std::exit(kSkipped);
  }
  return std::move(backend).value();
}

}  // namespace

Backend& FailingBackend() {
  static const std::unique_ptr<CudaBackend> cuda = MustMakeCuda();
  static Failing backend(*cuda, TrapKernel);
  return backend;
}

Backend& HangingBackend() {
  static const std::unique_ptr<CudaBackend> cuda = MustMakeCuda();
  static Failing backend(*cuda, SpinKernel);
  return backend;
}

std::string FailingModel() {
  return "models/dsa-tiny";
}

}  // namespace dsa::testing
