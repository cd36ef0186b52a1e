// A model on ranks that are threads, and how its logits compare with those of one rank.
#pragma once

#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "server/engine/rank_group.h"
#include "tests/model/golden.h"
#include "tests/model/rank_requests.h"
#include "tests/model/sequence_runner.h"
#include "tests/sanitized.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {

// The folder of a checkpoint of SplitOptions, written once.
inline const std::string& Split(Architecture architecture, CheckpointType type) {
  const std::string name =
      "split_" + std::to_string(static_cast<int>(architecture) * 10 + static_cast<int>(type));
  return CheckpointFolder(name, SplitOptions(architecture, type));
}

using WrapRank = std::function<std::unique_ptr<Backend>(Backend& inner, int rank)>;

// A checkpoint on ranks of one thread each.
class RankModel final {
 public:
  RankModel(const std::string& folder, const RankLayout& layout, const WrapRank& wrap = {})
      : group(static_cast<int>(layout.all_ranks()), static_cast<int>(layout.data_ranks)),
        layout_(layout) {
    const auto ranks = static_cast<int>(layout.all_ranks());
    const Checkpoint checkpoint = Checkpoint::Open(folder).value();
    config = checkpoint.config();
    std::vector<Backend*> used;
    for (int rank = 0; rank < ranks; ++rank) {
      backends_.push_back(std::make_unique<CpuBackend>(1, CpuSeat{.group = &group, .rank = rank}));
      used.push_back(backends_.back().get());
      if (wrap) {
        wrapped_.push_back(wrap(*used.back(), rank));
        used.back() = wrapped_.back().get();
      }
    }
    NoProgress progress;
    weights = LoadRankWeights(checkpoint, layout, used, progress).value();
    used_ = used;
  }

  std::unique_ptr<RankGroup> MakeExecutor(const ModelExecutorConfig& base) {
    ModelExecutorConfig executor = base;
    executor.place.layout = layout_;
    std::vector<RankGroup::Rank> ranks;
    for (std::size_t rank = 0; rank < used_.size(); ++rank) {
      ranks.push_back({.backend = *used_[rank], .weights = weights[rank].weights});
    }
    return RankGroup::Create(group, ranks, config, executor).value();
  }

  ThreadGroup group;
  ModelConfig config;

 private:
  std::vector<std::unique_ptr<Backend>> backends_;
  std::vector<std::unique_ptr<Backend>> wrapped_;
  std::vector<Backend*> used_;
  const RankLayout layout_;

 public:
  std::vector<DeviceWeights> weights;  // goes before the backends
};

inline RunOptions OptionsOf(const ModelConfig& config) {
  RunOptions options;
  options.kv_format = config.default_kv_format();
  return options;
}

inline constexpr std::int64_t kLongPrompt = kSanitized ? 130 : 256;  // two and four times top-k

inline std::vector<SequenceOutput> RunWhole(const std::string& folder,
                                            const std::vector<SequenceRequest>& requests) {
  CpuBackend backend(2);
  const TestModel model(folder, backend);
  SequenceRunner runner(backend, model.loaded(), OptionsOf(model.config));
  return runner.Run(requests);
}

inline std::vector<SequenceOutput> RunOn(RankModel& model,
                                         const std::vector<SequenceRequest>& requests) {
  SequenceRunner runner(
      [&](const ModelExecutorConfig& config) { return model.MakeExecutor(config); }, model.config,
      OptionsOf(model.config));
  return runner.Run(requests);
}

struct RankDifference {
  double logits = 0;         // ||got - whole|| / ||whole|| over all rows
  double equal_values = 0;   // share of logits with the same bits
  bool clear_tokens = true;  // the same greedy token at every row whose margin exceeds `margin`
};

// Of every row that `got` has.
inline RankDifference Compare(const std::vector<SequenceOutput>& got,
                              const std::vector<SequenceOutput>& whole, float margin) {
  RankDifference difference;
  double square = 0;
  double norm = 0;
  std::int64_t equal = 0;
  std::int64_t all = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    REQUIRE_FALSE(got[i].logits.empty());
    for (const auto& [position, row] : got[i].logits) {
      std::vector<float> expected = whole[i].logits.at(position);
      for (std::size_t v = 0; v < row.size(); ++v) {
        const double delta = double{row[v]} - double{expected[v]};
        square += delta * delta;
        norm += double{expected[v]} * double{expected[v]};
        equal += row[v] == expected[v] ? 1 : 0;
        ++all;
      }
      const auto best = std::max_element(expected.begin(), expected.end());
      const auto token = best - expected.begin();
      const float largest = std::exchange(*best, -INFINITY);
      if (largest - *std::max_element(expected.begin(), expected.end()) > margin) {
        difference.clear_tokens = difference.clear_tokens &&
                                  std::max_element(row.begin(), row.end()) - row.begin() == token;
      }
    }
  }
  difference.logits = std::sqrt(square / norm);
  difference.equal_values = static_cast<double>(equal) / static_cast<double>(all);
  return difference;
}

// float32: only the order of sums differs.
inline bool SameModel(const std::vector<SequenceOutput>& got,
                      const std::vector<SequenceOutput>& whole) {
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (got[i].ids != whole[i].ids || got[i].faulty) {
      return false;
    }
  }
  return Compare(got, whole, 0.0F).logits < 1e-6;
}

}  // namespace dsa::testing
