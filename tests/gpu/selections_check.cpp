// Which keys the indexer selects on CUDA, beside the CPU.
//
// In float32 the same ones, but for ties.  In fp8 Hopper's tensor cores keep 14 bits of a sum, so
// roundings move already in the first layer, and keys near the border with them.  How many is
// measured beside: the CPU against itself with its products off by as much as the contract of
// BlockScaledLinear states.  And with the CPU's products in their place, CUDA selects the CPU's
// keys in the first layer: nothing else differs.
#include "common/numeric.h"
#include "common/prng.h"
#include "kernels/forwarding_backend.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/indexer_logits.h"
#include "model/checkpoint.h"
#include "model/random_checkpoint.h"
#include "model/weight_loader.h"
#include "server/engine/offline.h"
#include "tests/gpu/gpu_checks.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
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

// A CPU whose fp8 products are off by the relative error of Hopper's tensor cores, 1.25e-4.
class InexactProducts final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void BlockScaledLinear(const BlockScaledLinearParams& params) override {
    constexpr float kErrorMax = 2.2e-4F;  // drawn evenly: 1.25e-4 in the mean of squares
    constexpr std::uint64_t kSeed = 5;
    const std::int64_t cols = params.y.cols;
    std::vector<float> sums(static_cast<std::size_t>(params.y.rows * cols));
    BlockScaledLinearParams exact = params;
    exact.y.data = sums.data();
    exact.y.type = DataType::kF32;
    exact.y.row_stride = cols;
    inner_.BlockScaledLinear(exact);
    for (std::int64_t i = 0; i < params.y.rows * cols; ++i) {
      const float draw = CounterUniform(kSeed, drawn_++);
      const float value = sums[static_cast<std::size_t>(i)] * (1.0F + kErrorMax * (2 * draw - 1));
      const std::int64_t at = i / cols * params.y.row_stride + i % cols;
      if (params.y.type == DataType::kBf16) {
        static_cast<Bf16*>(params.y.data)[at] = ToBf16(value);
      } else {
        static_cast<float*>(params.y.data)[at] = value;
      }
    }
  }

 private:
  std::uint64_t drawn_ = 0;
};

// CUDA whose fp8 products the CPU computes: those with weights, and the indexer's scores.
class ExactProducts final : public ForwardingBackend {
 public:
  ExactProducts(Backend& cuda, Backend& cpu) : ForwardingBackend(cuda), cpu_(cpu) {}

  void BlockScaledLinear(const BlockScaledLinearParams& params) override {
    BlockScaledLinearParams on_host = params;
    const auto x = OnHost(on_host.x);
    const auto x_scales = OnHost(on_host.x_scales);
    const auto weight = OnHost(on_host.weight);
    const auto weight_scales = OnHost(on_host.weight_scales);
    std::vector<std::uint8_t> y(static_cast<std::size_t>(
        ((params.y.rows - 1) * params.y.row_stride + params.y.cols) * SizeOf(params.y.type)));
    Fetch(y.data(), params.y.data, y.size());
    on_host.y.data = y.data();
    cpu_.BlockScaledLinear(on_host);
    inner_.CopyToDevice(params.y.data, y.data(), y.size());
    inner_.Synchronize();
  }
  void IndexerLogits(const IndexerLogitsParams& params) override {
    IndexerLogitsParams on_host = params;
    const ConstAnyTensor3& q = params.queries;
    std::vector<std::uint8_t> queries(static_cast<std::size_t>(
        ((q.rows - 1) * q.row_stride + (q.heads - 1) * q.head_stride + q.cols) * SizeOf(q.type)));
    Fetch(queries.data(), q.data, queries.size());
    on_host.queries.data = queries.data();
    const auto weights = OnHost(on_host.weights);
    std::vector<std::uint8_t> cache(static_cast<std::size_t>(
        params.cache.blocks * kTokensPerBlock * IndexerTokenBytes(params.cache.format)));
    Fetch(cache.data(), params.cache.data, cache.size());
    on_host.cache.data = cache.data();
    const auto positions = OnHost(on_host.rows.positions);
    const auto sequences = OnHost(on_host.rows.sequences);
    const auto tables = OnHost(on_host.rows.block_tables);
    Matrix<const float> scores_on_device{.data = params.scores.data,
                                         .rows = params.scores.rows,
                                         .cols = params.scores.cols,
                                         .row_stride = params.scores.row_stride};
    std::vector<float> scores = OnHost(scores_on_device);
    on_host.scores.data = scores.data();
    cpu_.IndexerLogits(on_host);
    inner_.CopyToDevice(params.scores.data, scores.data(), scores.size() * sizeof(float));
    inner_.Synchronize();
  }

 private:
  void Fetch(void* target, const void* source, std::size_t bytes) {
    inner_.CopyToHost(target, source, bytes);
    inner_.Synchronize();
  }
  // A copy, which the view then shows.
  template <typename T>
  std::vector<T> OnHost(Matrix<const T>& matrix) {
    std::vector<T> values(
        static_cast<std::size_t>((matrix.rows - 1) * matrix.row_stride + matrix.cols));
    Fetch(values.data(), matrix.data, values.size() * sizeof(T));
    matrix.data = values.data();
    return values;
  }
  template <typename T>
  std::vector<T> OnHost(Vector<const T>& vector) {
    std::vector<T> values(static_cast<std::size_t>(vector.size));
    Fetch(values.data(), vector.data, values.size() * sizeof(T));
    vector.data = values.data();
    return values;
  }

  Backend& cpu_;
};

void Select(WatchSelection& backend, const std::string& folder, const std::vector<TokenId>& ids) {
  const Checkpoint checkpoint = Checkpoint::Open(folder).value();
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

// Keys of one layer that are not the CPU's.
struct Others {
  std::int64_t keys = 0;  // all
  std::int64_t others = 0;
  double furthest = 0;  // below the CPU's border by the CPU's score, as a part of the largest score

  double Share() const { return static_cast<double>(others) / static_cast<double>(keys); }
};

Others Compare(const WatchSelection& cpu, const WatchSelection& other, std::size_t layer) {
  Others found;
  REQUIRE(other.selected.size() == cpu.selected.size());
  REQUIRE(other.selected[layer].size() == cpu.selected[layer].size());
  for (std::size_t row = 0; row < cpu.selected[layer].size(); ++row) {
    const Positions& expected = cpu.selected[layer][row];
    const std::vector<float>& scores = cpu.scores[layer][row];
    REQUIRE(other.selected[layer][row].size() == expected.size());
    float border = INFINITY;
    for (const std::int32_t key : expected) {
      border = std::min(border, scores[static_cast<std::size_t>(key)]);
    }
    const double largest = std::abs(*std::max_element(scores.begin(), scores.end()));
    for (const std::int32_t key : other.selected[layer][row]) {
      ++found.keys;
      if (!expected.contains(key)) {
        ++found.others;
        found.furthest =
            std::max(found.furthest, (border - scores[static_cast<std::size_t>(key)]) / largest);
      }
    }
  }
  return found;
}

void Print(const char* who, std::size_t tokens, std::size_t layer, const Others& found) {
  fmt::print(
      "selections  tokens={:5} layer {}  {}: {} of {} keys are others ({:.3f} %), at most "
      "{:.2f} % of the largest score below the border\n",
      tokens, layer, who, found.others, found.keys, 100 * found.Share(), 100 * found.furthest);
}

}  // namespace

TEST_CASE("in float32 CUDA selects the CPU's keys", "[selections]") {
  constexpr double kTie = 1e-5;  // of the largest score
  RandomCheckpointOptions options;
  options.type = CheckpointType::kF32;
  options.architecture = GENERATE(Architecture::kDeepseekV32, Architecture::kGlmMoeDsa);
  const std::string folder = "build/random-checkpoint";
  REQUIRE(WriteRandomCheckpoint(options, folder).ok());
  std::vector<TokenId> ids;
  for (std::int64_t i = 0; i < 500; ++i) {  // top-k is 64
    ids.push_back(static_cast<TokenId>((i * 131 + i * i * 7 + 3) % options.vocabulary));
  }
  const std::unique_ptr<Backend> cpu = testing::MustMake("cpu");
  WatchSelection of_cpu(*cpu, true);
  Select(of_cpu, folder, ids);
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  WatchSelection of_cuda(*cuda, false);
  Select(of_cuda, folder, ids);
  std::filesystem::remove_all(folder);
  for (std::size_t layer = 0; layer < of_cpu.selected.size(); ++layer) {
    const Others found = Compare(of_cpu, of_cuda, layer);
    Print("CUDA in float32", ids.size(), layer, found);
    CAPTURE(layer);
    CHECK(found.furthest < kTie);
    CHECK(found.Share() < 1e-3);
  }
}

TEST_CASE("in fp8 CUDA selects as many other keys as inexact products do", "[selections]") {
  constexpr double kOfSensitivity = 1.5;  // measured: 0.97 to 1.1
  const std::size_t length = GENERATE(as<std::size_t>(), 600, 1500);
  const std::vector<TokenId> ids = testing::TextIds(length, length);
  const std::unique_ptr<Backend> cpu = testing::MustMake("cpu");
  WatchSelection of_cpu(*cpu, true);
  Select(of_cpu, testing::kGpuModel, ids);
  const std::unique_ptr<Backend> cpu_again = testing::MustMake("cpu");
  InexactProducts inexact(*cpu_again);
  WatchSelection of_inexact(inexact, true);
  Select(of_inexact, testing::kGpuModel, ids);
  for (std::size_t layer = 0; layer < of_cpu.selected.size(); ++layer) {
    Print("inexact CPU", length, layer, Compare(of_cpu, of_inexact, layer));
  }
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  WatchSelection of_cuda(*cuda, false);
  Select(of_cuda, testing::kGpuModel, ids);
  for (std::size_t layer = 0; layer < of_cpu.selected.size(); ++layer) {
    const Others found = Compare(of_cpu, of_cuda, layer);
    Print("CUDA", length, layer, found);
    CAPTURE(length, layer);
    CHECK(found.Share() < kOfSensitivity * Compare(of_cpu, of_inexact, layer).Share());
  }
}

TEST_CASE("with the CPU's fp8 products CUDA selects the CPU's keys in the first layer",
          "[selections]") {
  constexpr double kShareMax = 1e-4;  // a rounding to fp8 that a sum's last bit moves
  constexpr std::size_t kLength = 1500;
  const std::vector<TokenId> ids = testing::TextIds(kLength, kLength);
  const std::unique_ptr<Backend> cpu = testing::MustMake("cpu");
  WatchSelection of_cpu(*cpu, true);
  Select(of_cpu, testing::kGpuModel, ids);
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  ExactProducts exact(*cuda, *cpu);
  WatchSelection of_cuda(exact, false);
  Select(of_cuda, testing::kGpuModel, ids);
  const Others found = Compare(of_cpu, of_cuda, 0);
  Print("CUDA with the CPU's products", kLength, 0, found);
  CHECK(found.Share() < kShareMax);
}

}  // namespace dsa
