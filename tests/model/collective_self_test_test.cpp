// The self-test of collectives on ranks that are threads: it passes, and names the rank and the
// operator where one of them does something else.
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "model/model_config.h"
#include "server/self_test.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

enum class CollectiveFault {
  kNone,
  kPartLeftOut,    // adds nothing of its own
  kRoundedPart,    // rounds its part before it is added
  kSumNotWritten,  // the sum goes elsewhere
  kLastRowLost,    // of the sum
  kPartsSwapped,   // gathers another part than its own
};

// What one rank does wrong.
class FaultyCollectives final : public ForwardingBackend {
 public:
  FaultyCollectives(Backend& inner, CollectiveFault fault)
      : ForwardingBackend(inner), fault_(fault) {}

  void AllReduce(const AllReduceParams& params) override {
    const std::int64_t count = params.partial.rows * params.partial.cols;
    const auto* const part = static_cast<const double*>(params.partial.data);
    std::vector<double> changed(part, part + count);
    for (std::int64_t i = 0; i < count; ++i) {
      double& value = changed[static_cast<std::size_t>(i)];
      if (fault_ == CollectiveFault::kPartLeftOut) {
        value = 0;
      } else if (fault_ == CollectiveFault::kRoundedPart) {
        value = static_cast<double>(static_cast<std::int64_t>(value) / 2 * 2);  // a bit fewer
      }
    }
    AllReduceParams call = params;
    call.partial.data = changed.data();
    std::vector<std::byte> elsewhere(
        static_cast<std::size_t>(params.sum.rows * params.sum.cols * SizeOf(params.sum.type)));
    if (fault_ == CollectiveFault::kSumNotWritten || fault_ == CollectiveFault::kLastRowLost) {
      call.sum.data = elsewhere.data();
    }
    inner_.AllReduce(call);
    if (fault_ == CollectiveFault::kLastRowLost) {
      const auto lost = static_cast<std::size_t>(params.sum.cols * SizeOf(params.sum.type));
      std::memcpy(params.sum.data, elsewhere.data(), elsewhere.size() - lost);
      std::memset(static_cast<std::byte*>(params.sum.data) + elsewhere.size() - lost, 0, lost);
    }
  }
  void AllGather(const AllGatherParams& params) override {
    AllGatherParams call = params;
    std::vector<float> other(
        static_cast<const float*>(params.part.data),
        static_cast<const float*>(params.part.data) + params.part.rows * params.part.cols);
    if (fault_ == CollectiveFault::kPartsSwapped) {
      std::reverse(other.begin(), other.end());
    }
    call.part.data = other.data();
    inner_.AllGather(call);
  }

 private:
  const CollectiveFault fault_;
};

// On so many ranks, of which the last has the fault.
Status CollectiveTest(int ranks, DataType type, CollectiveFault fault) {
  ThreadGroup group(ranks);
  std::vector<std::unique_ptr<CpuBackend>> backends;
  std::vector<std::unique_ptr<FaultyCollectives>> used;
  std::vector<Backend*> pointers;
  for (int rank = 0; rank < ranks; ++rank) {
    backends.push_back(std::make_unique<CpuBackend>(1, CpuSeat{.group = &group, .rank = rank}));
    used.push_back(std::make_unique<FaultyCollectives>(
        *backends.back(), rank == ranks - 1 ? fault : CollectiveFault::kNone));
    pointers.push_back(used.back().get());
  }
  ModelConfig model;
  model.hidden = 200;
  model.activation_type = type;
  return RunCollectiveTest(pointers, model, 37);
}

std::string WhatFails(int ranks, DataType type, CollectiveFault fault) {
  const Status status = CollectiveTest(ranks, type, fault);
  if (status.ok()) {
    return "";
  }
  CHECK(status.error().code == ErrorCode::kInternal);
  return status.error().message;
}

}  // namespace

TEST_CASE("the self-test of collectives passes on ranks that are right", "[model][self_test]") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const DataType type = GENERATE(DataType::kF32, DataType::kBf16);
  CAPTURE(ranks);
  CHECK(WhatFails(ranks, type, CollectiveFault::kNone).empty());
}

TEST_CASE("the self-test of collectives names what is wrong", "[model][self_test]") {
  const int ranks = GENERATE(2, 4);
  const DataType type = GENERATE(DataType::kF32, DataType::kBf16);
  CAPTURE(ranks);
  const std::string last = std::to_string(ranks - 1);
  // A wrong part spoils the sum on every rank; the first to say so is named.
  for (const CollectiveFault fault :
       {CollectiveFault::kPartLeftOut, CollectiveFault::kRoundedPart}) {
    CHECK_THAT(WhatFails(ranks, type, fault),
               Catch::StartsWith("self-test: AllReduce of [1, 200] is wrong on rank 0: "));
  }
  CHECK_THAT(WhatFails(ranks, type, CollectiveFault::kSumNotWritten),
             Catch::StartsWith("self-test: AllReduce of [1, 200] is wrong on rank " + last + ": "));
  CHECK_THAT(WhatFails(ranks, type, CollectiveFault::kLastRowLost),
             Catch::StartsWith("self-test: AllReduce of [1, 200] is wrong on rank " + last + ": "));
  CHECK_THAT(WhatFails(ranks, type, CollectiveFault::kPartsSwapped),
             Catch::StartsWith("self-test: AllGather of [4, " + std::to_string(ranks * 1000) +
                               "] is wrong on rank 0: "));
}

}  // namespace dsa::testing
