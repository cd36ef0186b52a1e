#include "server/self_test.h"

#include "common/log.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/op_trace.h"
#include "kernels/override_check.h"
#include "model/random_weights.h"
#include "server/engine/offline.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kGeneratedTokens = 2;  // the second is a decode step
constexpr std::int64_t kRowsPast = 8;         // of the prompt, behind index_topk
constexpr std::int64_t kRowsLast = 16;        // of its last chunk: half of them select
constexpr std::int64_t kRowsWithoutTopK = 48;
constexpr std::int64_t kComparedRowsMax = 256;  // of a step; more would take long
constexpr std::int64_t kFewRows = 8;
constexpr std::uint64_t kTinySeed = 1;

// What an output may differ by.  The order of a sum moves a value to the next one of its type, by
// 2^-8 in bf16.  Where that is the largest of its block it may halve or double the block's scale,
// and double or halve its fp8 values: of many rows one block, of few perhaps all.
double Allowed(const std::string& output, bool few_rows) {
  if (output.find("scale") != std::string::npos) {
    return 1.0;
  }
  const bool is_fp8 =
      output == "fp8 copy" || output == "latent" || output == "indexer key" || output == "queries";
  if (is_fp8) {
    return few_rows ? 1.1 : 0.5;
  }
  return 0.05;
}
// Ids, bits and counts: of the same scores the same, but for experts that are nearly as good.
constexpr double kUnequalAllowed = 0.02;

bool IsFault(const std::string& output, const OutputDifference& difference, bool few_rows) {
  return difference.unequal > 0.0 ? difference.unequal > kUnequalAllowed
                                  : !(difference.relative_error <= Allowed(output, few_rows));
}

Error Differs(const std::string& op, std::string_view where, const std::string& output,
              const OutputDifference& difference, std::string_view from, bool few_rows) {
  const std::string amount =
      difference.unequal > 0.0
          ? fmt::format("{:.3g} of its bytes, {} allowed", difference.unequal, kUnequalAllowed)
          : fmt::format("{:.3g} of its norm, {} allowed", difference.relative_error,
                        Allowed(output, few_rows));
  return {ErrorCode::kInternal, fmt::format("self-test: {}{} differs from {}: {} by {}", op, where,
                                            from, output, amount)};
}

Request MakeRequest(std::int64_t prompt_tokens, std::int64_t vocabulary) {
  Request request;
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = kGeneratedTokens;
  request.stop.ignore_end = true;
  for (std::int64_t i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<TokenId>((i * 7 + i / 5 + 1) % vocabulary));
  }
  return request;
}

// A prompt whose last chunk crosses top-k, and one decode step.
Status Run(Backend& backend, const LoadedModel& model, const SelfTestOptions& options) {
  const std::int64_t top_k = model.config.index_topk;
  const std::int64_t prompt = std::min(top_k > 0 ? top_k + kRowsPast : kRowsWithoutTopK,
                                       model.config.context_max - kGeneratedTokens);
  if (prompt <= kRowsLast) {
    return {};  // a context of a few tokens selects nothing
  }
  const auto result =
      RunOffline(backend, model,
                 {.kv_format = options.kv_format,
                  .attention = AttentionMode::kSparse,
                  .step_tokens_max = std::min(prompt - kRowsLast, options.step_tokens_max),
                  .masked_mha_until = options.masked_mha_until},
                 MakeRequest(prompt, model.config.vocabulary));
  if (!result.ok()) {
    return Error{result.error().code, "self-test: " + result.error().message};
  }
  return {};
}

// The model's family and types at a size that takes a CPU no time.
ModelConfig TinyConfig(const ModelConfig& model) {
  constexpr std::int64_t kTopK = 64;
  ModelConfig tiny = model;
  tiny.vocabulary = 512;
  tiny.hidden = 256;
  tiny.dense_layers = std::min<std::int64_t>(model.dense_layers, 1);
  tiny.layers = tiny.dense_layers + (model.experts > 0 ? 1 : 0);
  tiny.context_max = 256;
  tiny.heads = std::min<std::int64_t>(model.heads, 8);
  tiny.q_latent = model.q_latent > 0 ? 128 : 0;
  tiny.dense_width = 256;
  if (model.has_indexer()) {
    tiny.index_heads = std::min<std::int64_t>(model.index_heads, 8);
    tiny.index_topk = kTopK;
  }
  if (model.experts > 0) {
    const bool grouped = model.expert_groups > 1;
    tiny.experts = 16;
    tiny.experts_per_token = std::min<std::int64_t>(model.experts_per_token, 4);
    tiny.expert_groups = grouped ? 4 : 1;
    tiny.expert_groups_kept = grouped ? 2 : 1;
    tiny.expert_width = 128;
    tiny.shared_width = model.shared_width > 0 ? 128 : 0;
  }
  tiny.end_ids = {0};
  return tiny;
}

SelfTestOptions OptionsOfTiny(const ModelConfig& tiny, const SelfTestOptions& options) {
  SelfTestOptions of_tiny = options;
  of_tiny.step_tokens_max = kComparedRowsMax;
  of_tiny.masked_mha_until = options.masked_mha_until > 0 ? tiny.index_topk + kRowsPast / 2 : 0;
  return of_tiny;
}

Status CheckPlainOps(const ModelConfig& model, const SelfTestOptions& options) {
  const ModelConfig tiny = TinyConfig(model);
  const SelfTestOptions of_tiny = OptionsOfTiny(tiny, options);

  CpuBackend cpu(options.threads);
  OpTrace trace(cpu);
  DSA_ASSIGN_OR_RETURN(const DeviceWeights on_cpu, MakeRandomWeights(tiny, kTinySeed, cpu));
  DSA_RETURN_IF_ERROR(Run(trace, {.config = tiny, .weights = on_cpu.weights}, of_tiny));

  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> device, options.make_device());
  OpCheck check(*device, trace.ops());
  DSA_ASSIGN_OR_RETURN(const DeviceWeights on_device, MakeRandomWeights(tiny, kTinySeed, *device));
  DSA_RETURN_IF_ERROR(Run(check, {.config = tiny, .weights = on_device.weights}, of_tiny));
  for (const OpDifference& found : check.differences()) {
    if (IsFault(found.output, found.difference, false)) {
      return Differs(found.op, "", found.output, found.difference, "the CPU", false);
    }
  }
  return {};
}

// Hands the fused ops of each layer to a check of its own: of the first step and of those past
// top-k, unless they have many rows.
class LayerChecks final : public ForwardingBackend {
 public:
  LayerChecks(Backend& inner, std::size_t layers, std::int64_t top_k)
      : ForwardingBackend(inner), top_k_(top_k) {
    for (std::size_t i = 0; i < 2 * layers; ++i) {
      checks_.push_back(std::make_unique<OverrideCheck>(inner));
    }
  }

  const OverrideCheck& Of(std::size_t layer, bool few_rows) const {
    return *checks_[2 * layer + (few_rows ? 1 : 0)];
  }

  void PlanAttention(const PagedRows& rows, std::int64_t heads, bool batch_invariant) override {
    ForwardingBackend::PlanAttention(rows, heads, batch_invariant);
    const std::int64_t count = rows.positions.size;
    compares_ = count <= kComparedRowsMax && (steps_ == 0 || rows.visible_max > top_k_);
    few_rows_ = count < kFewRows;
    layer_ = 0;
    layers_begun_ = 0;
    ++steps_;
  }

  void AddNorm(const AddNormParams& params) override { Current().AddNorm(params); }
  void Project(const ProjectParams& params) override { Current().Project(params); }
  void WriteKeys(const WriteKeysParams& params) override {
    layer_ = layers_begun_++;  // once per layer; the norm before it counts as the layer before
    Current().WriteKeys(params);
  }
  void SelectKeys(const SelectKeysParams& params) override { Current().SelectKeys(params); }
  void AttendLatent(const AttendLatentParams& params) override { Current().AttendLatent(params); }
  void AttendMasked(const AttendMaskedParams& params) override { Current().AttendMasked(params); }
  void GatedMlp(const GatedMlpParams& params) override { Current().GatedMlp(params); }
  void ExpertMlp(const ExpertMlpParams& params) override { Current().ExpertMlp(params); }

 private:
  Backend& Current() { return compares_ ? *checks_[2 * layer_ + (few_rows_ ? 1 : 0)] : inner_; }

  const std::int64_t top_k_;
  std::vector<std::unique_ptr<OverrideCheck>> checks_;  // [layer][few rows]
  // Of the step.
  std::int64_t steps_ = 0;
  bool compares_ = false;
  bool few_rows_ = false;
  std::size_t layer_ = 0;
  std::size_t layers_begun_ = 0;
};

// First dense, first expert, last.
std::vector<std::size_t> CheckedLayers(const std::vector<LayerWeights>& layers) {
  std::vector<std::size_t> checked;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto is_dense = [&](std::size_t layer) { return layers[layer].dense.has_value(); };
    const bool is_first_of_kind = i == 0 || is_dense(i) != is_dense(i - 1);
    if (is_first_of_kind || i + 1 == layers.size()) {
      checked.push_back(i);
    }
  }
  return checked;
}

// `whose`: behind a layer's number.
Status CheckOverrides(const LoadedModel& model, const SelfTestOptions& options,
                      std::string_view whose) {
  const std::vector<std::size_t> layers = CheckedLayers(model.weights.layers);
  ModelWeights weights = model.weights;  // views
  weights.layers.clear();
  for (const std::size_t layer : layers) {
    weights.layers.push_back(model.weights.layers[layer]);
  }
  ModelConfig config = model.config;
  config.layers = static_cast<std::int64_t>(layers.size());
  config.dense_layers =
      std::count_if(weights.layers.begin(), weights.layers.end(),
                    [](const LayerWeights& layer) { return layer.dense.has_value(); });

  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> device, options.make_device());
  LayerChecks checks(*device, layers.size(), config.index_topk);
  Status run = Run(checks, {.config = config, .weights = weights}, options);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const bool few_rows : {false, true}) {
      for (const OverrideDifference& found : checks.Of(i, few_rows).Differences()) {
        const OutputDifference difference = {.relative_error = found.relative_error,
                                             .unequal = found.unequal};
        if (IsFault(found.output, difference, few_rows)) {
          return Differs(found.op, fmt::format(" of layer {}{}", layers[i], whose), found.output,
                         difference, "its plain operators", few_rows);
        }
      }
    }
  }
  return run;  // where an operator spoils it, the operator is what to name
}

Status CheckOverridesOfTiny(const ModelConfig& model, const SelfTestOptions& options) {
  const ModelConfig tiny = TinyConfig(model);
  DSA_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> device, options.make_device());
  DSA_ASSIGN_OR_RETURN(const DeviceWeights weights, MakeRandomWeights(tiny, kTinySeed, *device));
  return CheckOverrides({.config = tiny, .weights = weights.weights}, OptionsOfTiny(tiny, options),
                        " of a tiny model");
}

}  // namespace

Status RunRankSelfTest(const ModelConfig& model, const SelfTestOptions& options) {
  DSA_RETURN_IF_ERROR(CheckPlainOps(model, options));
  return CheckOverridesOfTiny(model, options);
}

Status RunSelfTest(const LoadedModel& model, const SelfTestOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  DSA_RETURN_IF_ERROR(CheckPlainOps(model.config, options));
  DSA_RETURN_IF_ERROR(CheckOverrides(model, options, ""));
  DSA_RETURN_IF_ERROR(CheckOverridesOfTiny(model.config, options));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  Log(LogLevel::kInfo, "self-test passed", {{"seconds", seconds.count()}});
  return {};
}

}  // namespace dsa
