// Which keys the indexer selects on CUDA, beside the CPU: in the first layer, whose rows are
// nearly the same values on both, the same ones; further up, where roundings have moved what rows
// are, other keys only near the border of the selection.
#include "kernels/forwarding_backend.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/ops/indexer_logits.h"
#include "model/checkpoint.h"
#include "model/weight_loader.h"
#include "server/engine/offline.h"
#include "tests/gpu/gpu_checks.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

using Positions = std::set<std::int32_t>;

// Keeps what each layer's rows have selected, by position; on the CPU also all scores.
class WatchSelection final : public ForwardingBackend {
 public:
  WatchSelection(Backend& inner, bool is_cpu) : ForwardingBackend(inner), is_cpu_(is_cpu) {}

  void WriteKeys(const WriteKeysParams& params) override {
    ForwardingBackend::WriteKeys(params);
    const std::vector<std::int64_t> slots =
        Copy(params.latent.slots.data, params.latent.slots.size);
    const std::vector<std::int32_t> positions =
        Copy(params.latent.positions.data, params.latent.positions.size);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      position_of_slot_[slots[i]] = positions[i];
    }
  }
  void SelectKeys(const SelectKeysParams& params) override {
    scores.emplace_back();
    if (is_cpu_) {
      ForwardingBackend::SelectKeys(params);  // op by op, through IndexerLogits below
    } else {
      inner_.SelectKeys(params);
    }
    const std::int64_t rows = params.slots.rows;
    const std::vector<std::int32_t> slots = Copy(params.slots.data, rows * params.slots.row_stride);
    std::vector<Positions>& layer = selected.emplace_back();
    for (std::int64_t row = 0; row < rows; ++row) {
      Positions& of_row = layer.emplace_back();
      for (std::int64_t i = 0; i < params.slots.cols; ++i) {
        const std::int32_t slot =
            slots[static_cast<std::size_t>(row * params.slots.row_stride + i)];
        if (slot >= 0) {
          of_row.insert(position_of_slot_.at(slot));
        }
      }
    }
  }
  void IndexerLogits(const IndexerLogitsParams& params) override {
    ForwardingBackend::IndexerLogits(params);
    for (std::int64_t row = 0; row < params.scores.rows; ++row) {
      const float* const first = params.scores.Row(row);
      scores.back().emplace_back(first, first + params.rows.positions.data[row] + 1);
    }
  }

  std::vector<std::vector<Positions>> selected;         // [layer][row]
  std::vector<std::vector<std::vector<float>>> scores;  // [layer][row][position]; CPU

 private:
  template <typename T>
  std::vector<std::remove_const_t<T>> Copy(T* data, std::int64_t size) {
    std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(size));
    inner_.CopyToHost(values.data(), data, values.size() * sizeof(T));
    inner_.Synchronize();
    return values;
  }

  const bool is_cpu_;
  std::map<std::int64_t, std::int32_t> position_of_slot_;
};

void Select(WatchSelection& backend, const Checkpoint& checkpoint,
            const std::vector<TokenId>& ids) {
  NoProgress progress;
  const DeviceWeights loaded = LoadWeights(checkpoint, backend, progress).value();
  Request request;
  request.external_id = "selections";
  request.prompt = ids;
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = 1;
  const auto result =
      RunOffline(backend, {.config = checkpoint.config(), .weights = loaded.weights},
                 {.kv_format = checkpoint.config().default_kv_format(),
                  .attention = AttentionMode::kSparse,
                  .step_tokens_max = static_cast<std::int64_t>(ids.size()),
                  .masked_mha_until = 0},
                 std::move(request));
  REQUIRE(result.ok());
}

// How far the CPU scores a key that only CUDA selects below the last one that it selects itself,
// as a part of that.
double BelowBorder(const std::vector<float>& scores, const Positions& selected, std::int32_t key) {
  float border = INFINITY;
  for (const std::int32_t position : selected) {
    border = std::min(border, scores[static_cast<std::size_t>(position)]);
  }
  return (border - scores[static_cast<std::size_t>(key)]) / std::abs(border);
}

}  // namespace

TEST_CASE("CUDA selects the CPU's keys", "[selections]") {
  constexpr double kNear = 0.01;
  const Checkpoint checkpoint = Checkpoint::Open(testing::kGpuModel).value();
  const std::size_t length = GENERATE(as<std::size_t>(), 600, 1500, 4000);
  const std::vector<TokenId> ids = testing::TextIds(length, length);
  const std::unique_ptr<Backend> cpu = testing::MustMake("cpu");
  WatchSelection of_cpu(*cpu, true);
  Select(of_cpu, checkpoint, ids);
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  WatchSelection of_cuda(*cuda, false);
  Select(of_cuda, checkpoint, ids);
  REQUIRE(of_cuda.selected.size() == of_cpu.selected.size());
  for (std::size_t layer = 0; layer < of_cpu.selected.size(); ++layer) {
    std::int64_t keys = 0;
    std::int64_t others = 0;
    std::int64_t far = 0;
    double furthest = 0;
    REQUIRE(of_cuda.selected[layer].size() == of_cpu.selected[layer].size());
    for (std::size_t row = 0; row < of_cpu.selected[layer].size(); ++row) {
      const Positions& expected = of_cpu.selected[layer][row];
      const Positions& actual = of_cuda.selected[layer][row];
      REQUIRE(actual.size() == expected.size());
      keys += static_cast<std::int64_t>(actual.size());
      for (const std::int32_t key : actual) {
        if (!expected.contains(key)) {
          const double below = BelowBorder(of_cpu.scores[layer][row], expected, key);
          ++others;
          far += below > kNear ? 1 : 0;
          furthest = std::max(furthest, below);
        }
      }
    }
    fmt::print(
        "selections  tokens={:5} layer {}: {} of {} keys are others ({:.4f} %), {} of them more "
        "than 1 % below the border ({:.2f} % of all), the furthest {:.1f} %\n",
        length, layer, others, keys,
        100.0 * static_cast<double>(others) / static_cast<double>(keys), far,
        100.0 * static_cast<double>(far) / static_cast<double>(keys), 100 * furthest);
    CAPTURE(length, layer);
    if (layer == 0) {
      CHECK(others == 0);
    } else {
      CHECK(far == 0);
    }
  }
}

}  // namespace dsa
