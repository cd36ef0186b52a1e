// Ranks of a model on a GPU each.
#pragma once

#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/weight_loader.h"
#include "server/engine/rank_group.h"
#include "tests/model/route_watch.h"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::testing {

inline constexpr int kSkipped = 77;  // CTest's skip code for this binary

inline int Devices() {
  static const int devices = [] {
    int count = 0;
    while (CudaBackend::Make(count).ok()) {
      ++count;
    }
    return count;
  }();
  if (devices < 2) {
    fmt::print(stderr, "skipped: {} CUDA devices\n", devices);
    std::exit(kSkipped);
  }
  return devices;
}

// What ranks meet in.  kNothing: each adds up and gathers as if it were alone, so that its sums
// lack the others' parts, and its logits their columns.
enum class Through { kPeers, kNccl, kNothing };

// A rank that meets nobody.
class LoneRank final : public FusedForwardingBackend {
 public:
  explicit LoneRank(CudaBackend& inner) : FusedForwardingBackend(inner), group_(1) {
    CudaBackend* const only = &inner;
    REQUIRE(CudaBackend::JoinPeers({&only, 1}, group_).ok());
  }
  // Its own columns beside zeros, so that tokens are not chosen by what the memory held before.
  void AllGather(const AllGatherParams& params) override {
    AllGatherParams own = params;
    inner_.Zero(own.whole.data, static_cast<std::size_t>(own.whole.rows * own.whole.row_stride *
                                                         SizeOf(own.whole.type)));
    own.whole.cols = params.part.cols;
    inner_.AllGather(own);
  }

 private:
  ThreadGroup group_;
};

// Ranks on a GPU each, as far as there are so many.
struct GpuGroup {
  explicit GpuGroup(std::int64_t ranks, std::int64_t parts = 1, Through through = Through::kPeers)
      : group(static_cast<int>(ranks), static_cast<int>(parts)) {
    std::vector<CudaBackend*> joined;
    for (int rank = 0; rank < static_cast<int>(ranks); ++rank) {
      backends.push_back(CudaBackend::Make(rank).value());
      joined.push_back(backends.back().get());
      used.push_back(backends.back().get());
    }
    if (through == Through::kNothing) {
      for (std::size_t rank = 0; rank < used.size(); ++rank) {
        lone.push_back(std::make_unique<LoneRank>(*joined[rank]));
        used[rank] = lone.back().get();
      }
      return;
    }
    const Status status = through == Through::kPeers ? CudaBackend::JoinPeers(joined, group)
                                                     : CudaBackend::JoinNccl(joined, group);
    INFO((status.ok() ? "" : status.error().message));
    REQUIRE(status.ok());
  }

  // An executor of all, or of the one.
  std::unique_ptr<StepExecutor> Make(const ModelConfig& model,
                                     const std::vector<DeviceWeights>& weights,
                                     const ModelExecutorConfig& config) {
    if (used.size() == 1) {
      return ModelExecutor::Create(*used.front(),
                                   {.config = model, .weights = weights.front().weights}, config)
          .value();
    }
    return MakeRanks(model, weights, config);
  }
  std::unique_ptr<RankGroup> MakeRanks(const ModelConfig& model,
                                       const std::vector<DeviceWeights>& weights,
                                       const ModelExecutorConfig& config) {
    std::vector<RankGroup::Rank> ranks;
    for (std::size_t rank = 0; rank < used.size(); ++rank) {
      ranks.push_back({.backend = *used[rank], .weights = weights[rank].weights});
    }
    return std::move(RankGroup::Create(group, ranks, model, config)).value();
  }

  ThreadGroup group;
  std::vector<std::unique_ptr<CudaBackend>> backends;
  std::vector<std::unique_ptr<LoneRank>> lone;
  std::vector<Backend*> used;
};

}  // namespace dsa::testing
