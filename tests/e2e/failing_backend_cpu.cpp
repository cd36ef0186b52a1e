#include "kernels/cpu/cpu_backend.h"
#include "kernels/device_failure.h"
#include "kernels/forwarding_backend.h"
#include "tests/e2e/failing_backend.h"
#include "tests/e2e/tiny_model.h"

namespace dsa::testing {
namespace {

class Failing final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void Sample(const SampleParams& params) override {
    if (++steps_ > kStepsBeforeFailure) {
      DeviceFailed("planted");
    }
    ForwardingBackend::Sample(params);
  }

 private:
  int steps_ = 0;
};

}  // namespace

Backend& FailingBackend() {
  static CpuBackend cpu(1);
  static Failing backend(cpu);
  return backend;
}

std::string FailingModel() {
  return TinyModel();
}

}  // namespace dsa::testing
