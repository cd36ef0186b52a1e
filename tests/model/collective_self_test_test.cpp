// The self-test of collectives on ranks that are threads: it passes, and names the rank and the
// operator where one of them does something else.
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "model/model_config.h"
#include "model/rank_shape.h"
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
  kRowLost,        // what came from the last data rank is not there
  kRowElsewhere,   // the first row comes where the second should
  kPaddingRoutes,  // sends padding as well
  kExpertLost,     // adds a row's experts but one
  kSharedLost,     // does not add the shared expert
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

  void Dispatch(const DispatchParams& params) override {
    DispatchParams call = params;
    if (fault_ == CollectiveFault::kPaddingRoutes) {
      call.live_rows = {};
    }
    inner_.Dispatch(call);
    const auto row_bytes = static_cast<std::size_t>(params.rows.cols * SizeOf(params.rows.type));
    auto* const rows = static_cast<std::byte*>(params.rows.data);
    if (fault_ == CollectiveFault::kRowLost) {
      std::memset(rows + static_cast<std::size_t>(params.rows.rows - params.x.rows) * row_bytes, 0,
                  row_bytes);
    } else if (fault_ == CollectiveFault::kRowElsewhere && params.x.rows > 1) {
      std::memcpy(rows, rows + row_bytes, row_bytes);
    }
  }
  void Combine(const CombineParams& params) override {
    CombineParams call = params;
    std::vector<float> weights(params.weights.data,
                               params.weights.data + params.weights.rows * params.weights.cols);
    if (fault_ == CollectiveFault::kExpertLost) {
      weights[0] = 0.0F;
      call.weights.data = weights.data();
    } else if (fault_ == CollectiveFault::kSharedLost) {
      call.shared = {nullptr, params.y.type, 0, 0, 0};
    }
    inner_.Combine(call);
  }

 private:
  const CollectiveFault fault_;
};

constexpr std::int64_t kRows = 37;

// On such ranks, of which the last has the fault.
Status CollectiveTest(const RankLayout& layout, DataType type, CollectiveFault fault) {
  const auto ranks = static_cast<int>(layout.all_ranks());
  ThreadGroup group(ranks, static_cast<int>(layout.data_ranks));
  std::vector<std::unique_ptr<CpuBackend>> backends;
  std::vector<std::unique_ptr<FaultyCollectives>> used;
  std::vector<Backend*> pointers;
  ModelConfig model;
  model.hidden = 200;
  model.heads = 4;
  model.layers = 1;
  model.experts = 10;
  model.experts_per_token = 3;
  model.expert_width = 128;
  model.vocabulary = 100;
  model.activation_type = type;
  for (int rank = 0; rank < ranks; ++rank) {
    backends.push_back(std::make_unique<CpuBackend>(1, CpuSeat{.group = &group, .rank = rank}));
    const Status reserved =
        backends.back()->ReserveScratch({.tokens_max = layout.data_ranks * kRows,
                                         .context_max = 64,
                                         .masked_context_max = 0,
                                         .hidden = model.hidden,
                                         .heads = 1,
                                         .nope = 64,
                                         .value = 64,
                                         .index_heads = 0,
                                         .index_topk = 0,
                                         .experts = model.experts,
                                         .experts_per_token = model.experts_per_token,
                                         .expert_width = model.expert_width,
                                         .linear_width_max = model.hidden,
                                         .logit_rows_max = 1,
                                         .vocabulary = model.vocabulary});
    REQUIRE(reserved.ok());
    used.push_back(std::make_unique<FaultyCollectives>(
        *backends.back(), rank == ranks - 1 ? fault : CollectiveFault::kNone));
    pointers.push_back(used.back().get());
  }
  return RunCollectiveTest(pointers, model, layout, kRows);
}

std::string WhatFails(const RankLayout& layout, DataType type, CollectiveFault fault) {
  const Status status = CollectiveTest(layout, type, fault);
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
  CHECK(WhatFails({.ranks = ranks}, type, CollectiveFault::kNone).empty());
}

TEST_CASE("the self-test of collectives names what is wrong", "[model][self_test]") {
  const int ranks = GENERATE(2, 4);
  const DataType type = GENERATE(DataType::kF32, DataType::kBf16);
  CAPTURE(ranks);
  const std::string last = std::to_string(ranks - 1);
  // A wrong part spoils the sum on every rank; the first to say so is named.
  for (const CollectiveFault fault :
       {CollectiveFault::kPartLeftOut, CollectiveFault::kRoundedPart}) {
    CHECK_THAT(WhatFails({.ranks = ranks}, type, fault),
               Catch::StartsWith("self-test: AllReduce of [1, 200] is wrong on rank 0: "));
  }
  CHECK_THAT(WhatFails({.ranks = ranks}, type, CollectiveFault::kSumNotWritten),
             Catch::StartsWith("self-test: AllReduce of [1, 200] is wrong on rank " + last + ": "));
  CHECK_THAT(WhatFails({.ranks = ranks}, type, CollectiveFault::kLastRowLost),
             Catch::StartsWith("self-test: AllReduce of [1, 200] is wrong on rank " + last + ": "));
  CHECK_THAT(WhatFails({.ranks = ranks}, type, CollectiveFault::kPartsSwapped),
             Catch::StartsWith("self-test: AllGather of [4, " + std::to_string(ranks * 1000) +
                               "] is wrong on rank 0: "));
}

TEST_CASE("the self-test of the exchange passes on ranks that are right", "[model][self_test]") {
  const std::int64_t tensor_ranks = GENERATE(1, 2);
  const std::int64_t data_ranks = GENERATE(2, 3);
  const DataType type = GENERATE(DataType::kF32, DataType::kBf16);
  CAPTURE(tensor_ranks, data_ranks);
  CHECK(WhatFails({.ranks = tensor_ranks, .expert_parallel = true, .data_ranks = data_ranks}, type,
                  CollectiveFault::kNone)
            .empty());
}

TEST_CASE("the self-test of the exchange names what is wrong", "[model][self_test]") {
  const DataType type = GENERATE(DataType::kF32, DataType::kBf16);
  const std::int64_t tensor_ranks = GENERATE(1, 2);
  const RankLayout layout = {.ranks = tensor_ranks, .expert_parallel = true, .data_ranks = 2};
  const std::string last = std::to_string(layout.all_ranks() - 1);
  CHECK_THAT(WhatFails(layout, type, CollectiveFault::kRowLost),
             Catch::StartsWith("self-test: Dispatch of [1, 200] is wrong on rank " + last + ": "));
  CHECK_THAT(WhatFails(layout, type, CollectiveFault::kExpertLost),
             Catch::StartsWith("self-test: Combine of [1, 200] is wrong on rank " + last));
  CHECK_THAT(WhatFails(layout, type, CollectiveFault::kSharedLost),
             Catch::StartsWith("self-test: Combine of [1, 200] is wrong on rank " + last));
  if (tensor_ranks ==
      1) {  // else the last rank sends nothing, nor has it an expert of the first row
    CHECK_THAT(WhatFails(layout, type, CollectiveFault::kRowElsewhere),
               Catch::StartsWith("self-test: Dispatch of [37, 200] is wrong on rank 1: "));
    CHECK_THAT(WhatFails(layout, type, CollectiveFault::kPaddingRoutes),
               Catch::StartsWith("self-test: Dispatch of [37, 200] is wrong on rank 0: "));
  }
}

}  // namespace dsa::testing
