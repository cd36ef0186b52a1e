#include "model/inspect.h"

#include "model/checkpoint.h"
#include "model/scale_check.h"
#include "model/weight_loader.h"

#include <array>
#include <vector>

#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

struct PartSize {
  std::int64_t tensors = 0;
  std::int64_t parameters = 0;  // without scales
  std::int64_t bytes = 0;       // with scales
};

std::string_view FormatName(KvFormat format) {
  switch (format) {
    case KvFormat::kFp8: return "fp8";
    case KvFormat::kBf16: return "bf16";
    case KvFormat::kF32: return "f32";
  }
  return "unknown";
}

class Report final {
 public:
  explicit Report(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), config_(checkpoint.config()) {}

  Result<std::string> Make() {
    DSA_RETURN_IF_ERROR(Measure());
    Graph();
    Sizes();
    Cache();
    Defaults();
    if (!config_.ignored_keys.empty()) {
      Line("keys ignored", fmt::format("{}", fmt::join(config_.ignored_keys, ", ")));
    }
    for (const std::string& problem : problems_) {
      Line("problem", problem);
    }
    if (problems_.empty()) {
      Line("problems", "none");
    }
    return std::move(text_);
  }

 private:
  void Line(std::string_view name, std::string_view value) {
    text_ += fmt::format("{:<16}{}\n", name, value);
  }

  // Sizes by part from the headers, and a look at every scale.
  Status Measure() {
    Status first;
    std::int64_t odd_scales = 0;
    ModelWeights weights;
    ForEachTensor(config_, weights, [&](const TensorSpec& spec) {
      const StoredTensor& stored = *checkpoint_.At(spec.name).stored;
      PartSize& part = parts_[static_cast<std::size_t>(spec.part)];
      part.tensors += 1;
      part.parameters += stored.bytes / SizeOf(stored.type);
      part.bytes += stored.bytes;
      if (stored.type != DataType::kFp8E4m3 || !first.ok()) {
        return;
      }
      const Result<std::int64_t> odd = ReadScales(spec.name + "_scale_inv", part);
      if (odd.ok()) {
        odd_scales += odd.value();
      } else {
        first = odd.error();
      }
    });
    if (odd_scales > 0 && config_.scale_format == ScaleFormat::kPowerOfTwo) {
      problems_.push_back(fmt::format(
          "{} weight scales are not powers of two though scale_fmt is ue8m0", odd_scales));
    }
    return first;
  }

  Result<std::int64_t> ReadScales(const std::string& name, PartSize& part) {
    const CheckpointTensor tensor = checkpoint_.At(name);
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.stored->bytes));
    DSA_RETURN_IF_ERROR(checkpoint_.Read(tensor, 0, bytes.data(), bytes.size()));
    part.tensors += 1;
    part.bytes += tensor.stored->bytes;
    return CountOddScales(tensor, bytes);
  }

  void Graph() {
    const ModelConfig& c = config_;
    Line("model", checkpoint_.folder());
    Line("architecture", ToString(c.architecture));
    Line("layers", fmt::format("{}: {} dense, {} with experts; {} MTP layers left aside", c.layers,
                               c.dense_layers, c.layers - c.dense_layers, c.mtp_layers));
    Line("hidden", fmt::format("{}, dense width {}, vocabulary {}{}", c.hidden, c.dense_width,
                               c.vocabulary, c.tied_embeddings ? ", tied embeddings" : ""));
    Line("attention", fmt::format("{} heads of {} + {}, values of {}, latents {} (q) and {} (kv)",
                                  c.heads, c.nope, kRopeWidth, c.value, c.q_latent, kLatentWidth));
    Line("selection",
         c.has_indexer()
             ? fmt::format(
                   "top {} by {} index heads, {} RoPE", c.index_topk, c.index_heads,
                   c.index_rope_layout == RopeLayout::kHalfSplit ? "half-split" : "interleaved")
             : std::string("none: dense attention"));
    if (c.experts > 0) {
      Line("experts", fmt::format("{} of {} in {} of {} groups, width {}, shared width {}",
                                  c.experts_per_token, c.experts, c.expert_groups_kept,
                                  c.expert_groups, c.expert_width, c.shared_width));
    }
    const std::string_view base = SafetensorsName(c.activation_type);
    Line("weights",
         c.quantized
             ? fmt::format("F8_E4M3 with 128x128 scales ({}) and {}",
                           c.scale_format == ScaleFormat::kPowerOfTwo ? "ue8m0" : "plain", base)
             : std::string(base));
  }

  void Sizes() {
    PartSize sum;
    text_ += "\n";
    text_ += fmt::format("{:<16}{:>8}{:>14}{:>14}\n", "part", "tensors", "parameters", "size");
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const PartSize& part = parts_[i];
      sum.tensors += part.tensors;
      sum.parameters += part.parameters;
      sum.bytes += part.bytes;
      if (part.tensors > 0) {
        Size(ToString(static_cast<ModelPart>(i)), part);
      }
    }
    Size("sum", sum);
    std::int64_t stored = 0;
    for (const SafetensorsFile& file : checkpoint_.files()) {
      for (const StoredTensor& tensor : file.tensors()) {
        stored += tensor.bytes;
      }
    }
    text_ += "\n";
    Line("files",
         fmt::format("{} with {} tensors, {}; {} not loaded", checkpoint_.shards(),
                     checkpoint_.tensors(), Amount(stored, "B"), Amount(stored - sum.bytes, "B")));
    Line("device memory",
         fmt::format("{} for weights", Amount(WeightBytes(checkpoint_, WholeModel(config_)), "B")));
  }

  void Size(std::string_view name, const PartSize& part) {
    text_ += fmt::format("{:<16}{:>8}{:>14}{:>14}\n", name, part.tensors,
                         Amount(part.parameters, ""), Amount(part.bytes, "B"));
  }

  void Cache() {
    for (const KvFormat format : {KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32}) {
      const std::int64_t bytes = config_.layers * LatentTokenBytes(format) +
                                 config_.indexer_layers() * IndexerTokenBytes(format);
      Line(fmt::format("KV cache {}", FormatName(format)),
           fmt::format("{} bytes a token, {} for {} tokens{}", bytes,
                       Amount(bytes * config_.context_max, "B"), config_.context_max,
                       format == config_.default_kv_format() ? " (default)" : ""));
    }
  }

  void Defaults() {
    const SamplingDefaults& sampling = config_.sampling;
    Line("context", fmt::format("{} positions", config_.context_max));
    Line("end ids", fmt::format("{}", fmt::join(config_.end_ids, ", ")));
    Line("sampling",
         fmt::format("temperature {}, top_p {}, min_p {}, top_k {}, repetition_penalty {}",
                     sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k,
                     sampling.repetition_penalty));
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  std::array<PartSize, kModelParts> parts_{};
  std::vector<std::string> problems_;
  std::string text_;
};

}  // namespace

std::string Amount(std::int64_t value, std::string_view unit) {
  constexpr std::string_view kPrefixes[] = {"", "k", "M", "G", "T"};
  auto scaled = static_cast<double>(value);
  std::size_t prefix = 0;
  while (scaled >= 1000.0 && prefix + 1 < std::size(kPrefixes)) {
    scaled /= 1000.0;
    ++prefix;
  }
  return prefix == 0 ? fmt::format("{} {}", value, unit)
                     : fmt::format("{:.2f} {}{}", scaled, kPrefixes[prefix], unit);
}

Result<std::string> InspectCheckpoint(const std::string& folder, GenerationFile generation) {
  DSA_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(folder, generation));
  return Report(checkpoint).Make();
}

}  // namespace dsa
