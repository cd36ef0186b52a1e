#include "server/step_prediction.h"

#include "common/check.h"
#include "kernels/kv_layout.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

namespace dsa {
namespace {

// A prompt's rows up to here attend over expanded keys; where the table was measured.
constexpr std::int64_t kMaskedUntil = 8192;
// Of a row and an expert, in the mean of the experts that are hit: up to so many the kernel of a
// decode step computes them.
constexpr double kFewPairs = 64.0;
constexpr double kActivationBytes = 2.0;
constexpr double kFloatBytes = 4.0;

// What a call has to move and to compute at least.
struct CallWork {
  double bytes = 0.0;
  double fp8_flops = 0.0;
  double bf16_flops = 0.0;
};

double FloorUs(const GpuTimes& gpu, const CallWork& work) {
  return std::max(work.bytes / gpu.copy_bytes_per_us,
                  work.fp8_flops / gpu.fp8_flops_per_us + work.bf16_flops / gpu.bf16_flops_per_us);
}

double At(std::int64_t value) {
  return static_cast<double>(value);
}

// Sizes of a step on one rank.
class RankStep final {
 public:
  RankStep(const ModelConfig& model, const RankShape& shape, const StepToPredict& step)
      : model_(model), shape_(shape), step_(step), rows_(At(step.rows)) {
    mean_visible_ = At(step.visible) - (step.is_prefill ? (rows_ - 1.0) / 2.0 : 0.0);
    distinct_keys_ = At(step.visible) * (step.is_prefill ? 1.0 : rows_);
    if (model.experts > 0) {
      const double all_rows = rows_ * At(shape.data_ranks);
      const double share = At(shape.experts.count) / At(model.experts);
      const double even =
          At(model.experts) *
          (1.0 - std::pow(1.0 - At(model.experts_per_token) / At(model.experts), all_rows));
      experts_here_ = step.experts_hit.value_or(even) * share;
      pairs_here_ = all_rows * At(model.experts_per_token) * share;
    }
  }

  bool is_masked() const { return step_.is_prefill && step_.visible <= kMaskedUntil; }
  double pairs_per_expert() const {
    return experts_here_ > 0.0 ? std::max(1.0, pairs_here_ / experts_here_) : 1.0;
  }
  double Calls(StepSection section) const {
    const auto layers = At(shape_.layers.count);
    const auto dense = At(std::min(model_.dense_layers, shape_.layers.count));
    switch (section) {
      case StepSection::kEmbed: return 3.0;
      case StepSection::kAddNorm: return 2.0 * layers + 1.0;
      case StepSection::kSelectKeys: return step_.visible > model_.index_topk ? layers : 0.0;
      case StepSection::kDenseMlp: return model_.experts > 0 ? dense : layers;
      case StepSection::kExperts: return model_.experts > 0 ? layers - dense : 0.0;
      case StepSection::kHead:
      case StepSection::kSample: return 1.0;
      default: return layers;
    }
  }
  CallWork Work(StepSection section) const {
    const auto hidden = At(model_.hidden);
    const auto heads = At(shape_.heads.count);
    const double latent = kLatentValues + kLatentRopeValues;
    const double index_width = At(model_.index_heads) * kIndexerValues;
    switch (section) {
      case StepSection::kEmbed: return {.bytes = 2.0 * rows_ * hidden * kActivationBytes};
      case StepSection::kAddNorm: return {.bytes = 4.5 * rows_ * hidden * kActivationBytes};
      case StepSection::kInputProjection: {
        CallWork work = Product(At(model_.q_latent) + latent + kIndexerValues, hidden);
        work.bytes += At(model_.index_heads) * hidden * kActivationBytes;
        work.bf16_flops = 2.0 * rows_ * At(model_.index_heads) * hidden;
        return work;
      }
      case StepSection::kWriteKeys:
        return {.bytes = rows_ * kActivationBytes *
                         (2.5 * At(model_.q_latent) + 1.6 * latent + 1.5 * kIndexerValues)};
      case StepSection::kQueryProjection:
        return Product(heads * At(model_.nope + kLatentRopeValues) + index_width,
                       model_.q_latent > 0 ? At(model_.q_latent) : hidden);
      case StepSection::kSelectKeys:
        return {.bytes = distinct_keys_ * At(IndexerTokenBytes(KvFormat::kFp8)) +
                         rows_ * (2.0 * index_width + kFloatBytes * At(model_.index_topk)),
                .fp8_flops = 2.0 * rows_ * mean_visible_ * index_width};
      case StepSection::kAttend: return Attention();
      case StepSection::kOutputProjection: return Product(hidden, heads * At(model_.value));
      case StepSection::kDenseMlp: return Mlp(At(shape_.dense_width.count), rows_);
      case StepSection::kExperts: return Experts();
      case StepSection::kHead:
        return {.bytes = At(shape_.vocabulary.count) *
                         (hidden * kActivationBytes + LogitRows() * kFloatBytes),
                .bf16_flops = 2.0 * LogitRows() * At(shape_.vocabulary.count) * hidden};
      case StepSection::kSample:
        return {.bytes = LogitRows() * At(model_.vocabulary) * kFloatBytes};
    }
    return {};
  }

 private:
  double LogitRows() const { return step_.is_prefill ? 1.0 : rows_; }

  CallWork Product(double outputs, double inputs) const {
    constexpr double kScaleBytes = 4.0 / (kWeightBlock * kWeightBlock);
    return {.bytes = outputs * inputs * (1.0 + kScaleBytes) + rows_ * inputs +
                     rows_ * outputs * kActivationBytes,
            .fp8_flops = 2.0 * rows_ * outputs * inputs};
  }
  CallWork Mlp(double width, double rows) const {
    const auto hidden = At(model_.hidden);
    return {.bytes = 3.0 * hidden * width + 3.0 * rows * hidden,
            .fp8_flops = 6.0 * rows * hidden * width};
  }
  CallWork Experts() const {
    const auto hidden = At(model_.hidden);
    const double expert = 3.0 * hidden * At(shape_.expert_width.count);
    CallWork work = Mlp(At(shape_.shared_width.count), rows_);
    work.bytes += At(model_.experts) * hidden * kActivationBytes + experts_here_ * expert;
    work.fp8_flops += 2.0 * pairs_here_ * expert;
    work.bf16_flops = 2.0 * rows_ * At(model_.experts) * hidden;
    return work;
  }
  CallWork Attention() const {
    const auto heads = At(shape_.heads.count);
    const auto head_values = At(model_.nope + model_.value);
    const double latent = kLatentValues + kLatentRopeValues;
    const double fixed_bytes = heads * head_values * kLatentValues * kActivationBytes +
                               rows_ * heads *
                                   (At(model_.nope + kLatentRopeValues) * kActivationBytes +
                                    1.5 * At(model_.value) * kActivationBytes);
    const auto record = At(LatentTokenBytes(KvFormat::kFp8));
    if (is_masked()) {  // keys and values of every head once, then every visible pair
      return {.bytes = fixed_bytes + distinct_keys_ * record,
              .bf16_flops = 2.0 * heads *
                            (distinct_keys_ * head_values * kLatentValues +
                             rows_ * mean_visible_ * (head_values + kLatentRopeValues))};
    }
    const double keys = std::min(mean_visible_, At(model_.index_topk));
    return {.bytes = fixed_bytes + std::min(rows_ * keys, distinct_keys_) * record,
            .bf16_flops = 2.0 * rows_ * heads *
                          (head_values * kLatentValues + keys * (latent + kLatentValues))};
  }

  const ModelConfig& model_;
  const RankShape& shape_;
  const StepToPredict& step_;
  const double rows_;
  double mean_visible_ = 0.0;
  double distinct_keys_ = 0.0;
  double experts_here_ = 0.0;  // that get a row
  double pairs_here_ = 0.0;
};

// What a measured step was of.
ModelConfig MeasuredModel(const MeasuredStep& measured) {
  const std::int64_t tensor_ranks = measured.tensor_ranks;
  ModelConfig model;
  model.vocabulary = 129280 / tensor_ranks;
  model.hidden = 7168;
  model.layers = 8;
  model.dense_layers = 3;
  model.heads = 128 / tensor_ranks;
  model.q_latent = 1536;
  model.nope = 128;
  model.value = 128;
  model.index_heads = 64;
  model.index_topk = 2048;
  model.dense_width = 18432 / tensor_ranks;
  model.expert_width = 2048 / tensor_ranks;
  model.shared_width = 2048 / tensor_ranks;
  model.experts = measured.experts;
  model.experts_per_token = 8;
  model.quantized = true;
  return model;
}

// us = fixed + stretch * floor.
struct CallLaw {
  double fixed_us;
  double stretch;
};

// A measured call: its floor where it was measured, and what it took.
struct MeasuredCall {
  double floor_us;
  double us;
};

// Of sections that were measured at one size alone, of this GPU and of the one it borrows from.
double LaunchesUs(StepSection section) {
  switch (section) {
    case StepSection::kSelectKeys:
    case StepSection::kDenseMlp: return 6.0;
    case StepSection::kAttend:
    case StepSection::kExperts: return 8.0;
    case StepSection::kEmbed:
    case StepSection::kAddNorm:
    case StepSection::kWriteKeys: return 2.0;
    default: return 4.0;
  }
}

// `one_size_fixed_us`: what is fixed of calls that are all of one size.
CallLaw LawOf(const std::vector<MeasuredCall>& calls, double one_size_fixed_us) {
  constexpr double kApart = 1.2;    // floors that say something of the stretch
  constexpr double kSmallUs = 2.0;  // launches are all of it
  const auto by_floor = [](const MeasuredCall& a, const MeasuredCall& b) {
    return a.floor_us < b.floor_us;
  };
  const auto [least, most] = std::minmax_element(calls.begin(), calls.end(), by_floor);
  if (most->floor_us < kSmallUs) {
    return {.fixed_us = std::max(0.0, most->us - most->floor_us), .stretch = 1.0};
  }
  if (most->floor_us > kApart * least->floor_us && most->us > least->us) {
    const double stretch = (most->us - least->us) / (most->floor_us - least->floor_us);
    const double fixed_us = most->us - stretch * most->floor_us;
    if (fixed_us >= 0.0) {
      return {.fixed_us = fixed_us, .stretch = stretch};
    }
  }
  const double fixed_us = std::min(one_size_fixed_us, most->us / 2.0);
  return {.fixed_us = fixed_us, .stretch = (most->us - fixed_us) / most->floor_us};
}

// Between the two measured laws around `level`, by its logarithm; beyond the ends that of the end.
CallLaw Interpolated(const std::map<double, CallLaw>& laws, double level) {
  const auto above = laws.lower_bound(level);
  if (above == laws.begin()) {
    return above->second;
  }
  const auto below = std::prev(above);
  if (above == laws.end()) {
    return below->second;
  }
  const double weight = std::log(level / below->first) / std::log(above->first / below->first);
  const auto between = [weight](double a, double b) { return a + weight * (b - a); };
  return {.fixed_us = between(below->second.fixed_us, above->second.fixed_us),
          .stretch = between(below->second.stretch, above->second.stretch)};
}

// The calls of a section that say something of this step's, by rows or by pairs of an expert.
class Measurements final {
 public:
  Measurements(const GpuTimes& gpu, StepSection section, const RankStep& step, bool is_prefill)
      : section_(section) {
    const bool is_of_prompts =
        section == StepSection::kExperts ? step.pairs_per_expert() > kFewPairs : is_prefill;
    const GpuTimes& source = is_of_prompts && gpu.borrows_from != nullptr ? *gpu.borrows_from : gpu;
    Add(source, is_of_prompts ? source.prefill : source.decode, step);
    if (source.borrows_from != nullptr) {
      other_ = std::make_unique<Measurements>(*source.borrows_from, section, step, is_prefill);
    }
  }
  CallLaw Law(double level) const {
    std::map<double, CallLaw> laws;
    for (const auto& [at, calls] : calls_) {
      laws.emplace(at, LawOf(calls, other_ ? other_->Law(at).fixed_us : LaunchesUs(section_)));
    }
    return Interpolated(laws, level);
  }

 private:
  void Add(const GpuTimes& gpu, std::span<const MeasuredStep> steps, const RankStep& wanted) {
    for (const MeasuredStep& measured : steps) {
      const ModelConfig model = MeasuredModel(measured);
      const RankShape shape = WholeModel(model);
      const StepToPredict step = {.is_prefill = measured.is_prefill,
                                  .rows = measured.rows,
                                  .visible = measured.visible,
                                  .experts_hit = measured.experts_hit};
      const RankStep sizes(model, shape, step);
      const bool depends_on_path =
          section_ == StepSection::kSelectKeys || section_ == StepSection::kAttend;
      if (depends_on_path && sizes.is_masked() != wanted.is_masked()) {
        continue;
      }
      const double level =
          section_ == StepSection::kExperts ? sizes.pairs_per_expert() : At(measured.rows);
      calls_[level].push_back({.floor_us = FloorUs(gpu, sizes.Work(section_)),
                               .us = measured.call_us.at(static_cast<std::size_t>(section_))});
    }
  }

  const StepSection section_;
  std::map<double, std::vector<MeasuredCall>> calls_;
  // Of the GPU that this one borrows from: launches and what else a size does not change take as
  // long.
  std::unique_ptr<Measurements> other_;
};

double BeyondSections(std::span<const MeasuredStep> steps, std::int64_t rows) {
  std::map<double, CallLaw> shares;
  for (const MeasuredStep& measured : steps) {
    shares[At(measured.rows)] = {.fixed_us = measured.beyond_sections, .stretch = 0.0};
  }
  return Interpolated(shares, At(rows)).fixed_us;
}

double CollectivesUs(const ModelConfig& model, const RankLayout& layout,
                     const StepToPredict& step) {
  const double layers = At(model.layers);
  const double expert_layers = model.experts > 0 ? At(model.layers - model.dense_layers) : 0.0;
  const std::int64_t logit_rows = step.is_prefill ? 1 : step.rows;
  const bool exchanges = layout.data_ranks > 1;
  const double reduces = exchanges ? 2.0 * layers - expert_layers : 2.0 * layers;
  return reduces * AllReduceUs(layout.ranks, step.rows, model.hidden) +
         AllGatherUs(layout.ranks, logit_rows, model.vocabulary) +
         (exchanges ? expert_layers * ExchangeUs(layout.data_ranks, step.rows, model) : 0.0);
}

// The same multiprocessors multiply as fast; what differs between two runs is their clocks.
GpuTimes RatesFor(const GpuTimes& gpu, bool is_prefill) {
  GpuTimes rates = gpu;
  if (is_prefill && gpu.borrows_from != nullptr) {
    rates.fp8_flops_per_us = gpu.borrows_from->fp8_flops_per_us;
    rates.bf16_flops_per_us = gpu.borrows_from->bf16_flops_per_us;
  }
  return rates;
}

StepPrediction OnRank(const GpuTimes& gpu, const ModelConfig& model, const RankShape& shape,
                      const StepToPredict& step) {
  const RankStep sizes(model, shape, step);
  const GpuTimes rates = RatesFor(gpu, step.is_prefill);
  StepPrediction predicted;
  for (std::size_t i = 0; i < kStepSections; ++i) {
    const auto section = static_cast<StepSection>(i);
    const double calls = sizes.Calls(section);
    if (calls == 0.0 || (section == StepSection::kSample && shape.rank > 0)) {
      continue;
    }
    const CallLaw law =
        Measurements(gpu, section, sizes, step.is_prefill)
            .Law(section == StepSection::kExperts ? sizes.pairs_per_expert() : At(step.rows));
    predicted.section_us.at(i) =
        calls * (law.fixed_us + law.stretch * FloorUs(rates, sizes.Work(section)));
    predicted.total_us += predicted.section_us.at(i);
  }
  const GpuTimes& prefill = gpu.borrows_from == nullptr ? gpu : *gpu.borrows_from;
  predicted.beyond_us = predicted.total_us *
                        BeyondSections(step.is_prefill ? prefill.prefill : gpu.decode, step.rows);
  predicted.total_us += predicted.beyond_us;
  return predicted;
}

}  // namespace

bool CanPredict(const ModelConfig& model) {
  constexpr std::int64_t kHiddenMin = 4096;
  return model.has_indexer() && model.quantized && model.activation_type == DataType::kBf16 &&
         model.hidden >= kHiddenMin;
}

StepPrediction PredictStep(const GpuTimes& gpu, const ModelConfig& model, const RankLayout& layout,
                           const StepToPredict& step) {
  DSA_CHECK(CanPredict(model), "PredictStep: a model of other kernels than those measured, {} keys",
            step.visible);
  DSA_CHECK(step.rows > 0 && step.visible >= (step.is_prefill ? step.rows : 1),
            "PredictStep: {} rows that see {} keys", step.rows, step.visible);
  StepPrediction slowest;
  for (std::int64_t rank = 0; rank < layout.all_ranks(); ++rank) {
    const StepPrediction predicted =
        OnRank(gpu, model, ShapeOf(model, {.rank = rank, .layout = layout}), step);
    slowest = predicted.total_us > slowest.total_us ? predicted : slowest;
  }
  slowest.collectives_us = CollectivesUs(model, layout, step);
  slowest.total_us += slowest.collectives_us;
  return slowest;
}

namespace {

// Time of a measured collective of two GPUs at so many of its rows: lines between those measured,
// beyond the last at the rate between the last two.
double OfTwoUs(std::span<const MeasuredCollective> measured, double rows) {
  const auto* above =
      std::find_if(measured.data(), measured.data() + measured.size() - 1,
                   [rows](const MeasuredCollective& at) { return At(at.rows) >= rows; });
  const auto* below = above == measured.data() ? above : above - 1;
  above = below + 1;
  const double slope = (above->us - below->us) / At(above->rows - below->rows);
  return std::max(measured.front().us, below->us + slope * (rows - At(below->rows)));
}

// What each of so many GPUs receives, against each of two, where all share the work.
double TrafficOf(std::int64_t ranks) {
  return 2.0 * At(ranks - 1) / At(ranks);
}

}  // namespace

// The time of one row stays, what more rows take grows with what comes over a GPU's link: in lines
// that of all others, in shares the part of two GPUs times TrafficOf.  The faster of the two.
double AllReduceUs(std::int64_t ranks, std::int64_t rows, std::int64_t hidden) {
  if (ranks == 1) {
    return 0.0;
  }
  constexpr double kMeasuredHidden = 7168.0;
  constexpr double kLinesRows = 36.0;    // of two GPUs; beyond them shares
  constexpr double kSharesRows = 128.0;  // from here on shares take a time per row
  const std::span<const MeasuredCollective> measured = MeasuredAllReduces();
  const double of_rows = At(rows) * At(hidden) / kMeasuredHidden;
  const double one_us = measured.front().us;
  if (ranks == 2) {
    return OfTwoUs(measured, of_rows);
  }
  const double line_us = (OfTwoUs(measured, kLinesRows) - one_us) / (kLinesRows - 1.0);
  const double share_us =
      (OfTwoUs(measured, 2.0 * kSharesRows) - OfTwoUs(measured, kSharesRows)) / kSharesRows;
  const double shares_fixed_us = OfTwoUs(measured, kSharesRows) - share_us * kSharesRows;
  return std::min(one_us + line_us * (of_rows * At(ranks - 1) - 1.0),
                  shares_fixed_us + share_us * of_rows * TrafficOf(ranks));
}

double AllGatherUs(std::int64_t ranks, std::int64_t rows, std::int64_t cols) {
  if (ranks == 1) {
    return 0.0;
  }
  constexpr double kMeasuredCols = 129280.0;
  return OfTwoUs(MeasuredAllGathers(), At(rows) * At(cols) / kMeasuredCols * TrafficOf(ranks));
}

// A row goes to the ranks that own an expert of it, of groups of experts as far as those are kept,
// and every pair comes back; both but for what stays.
double ExchangeUs(std::int64_t data_ranks, std::int64_t rows, const ModelConfig& model) {
  constexpr double kMeasuredHidden = 7168.0;
  constexpr double kMeasuredChoices = 8.0;
  const auto sent = [](double ranks, double choices, double receivers_max) {
    const double here = 1.0 / ranks;
    const double receivers = std::min(ranks * (1.0 - std::pow(1.0 - here, choices)), receivers_max);
    return (1.0 - here) * (receivers + choices);
  };
  const double receivers_max =
      At(model.expert_groups > 1 ? std::min(model.expert_groups_kept, data_ranks) : data_ranks);
  const double of_two = sent(2.0, kMeasuredChoices, 2.0);
  const double here = sent(At(data_ranks), At(model.experts_per_token), receivers_max);
  return OfTwoUs(MeasuredExchanges(),
                 At(rows) * At(model.hidden) / kMeasuredHidden * here / of_two);
}

}  // namespace dsa
