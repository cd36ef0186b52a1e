// dsa_step_bench FOLDER [prefill] ROWS POSITION ...: steps of a model with random weights, of which
// config.json is enough, and where their time goes.  ROWS sequences of POSITION tokens decode, or
// the ROWS rows of a prompt that end at POSITION are computed.
//
// A decode step is recorded and replayed as in a server, a prompt's queued op by op; keys are
// random latents in scattered blocks. Then each section (step_sections.h) is recorded alone, over
// all layers, and timed: the sum of the sections beside the step says whether the parts are its
// parts.  Floors are of the same run's copy and products.
#include "bench/cuda/device_bench.h"
#include "bench/cuda/step_sections.h"
#include "cache/kv_arena.h"
#include "common/check.h"
#include "common/prng.h"
#include "common/view_parts.h"
#include "kernels/cuda/launch.h"
#include "kernels/fused/write_keys.h"
#include "kernels/ops/fill_random.h"
#include "kernels/ops/sample.h"
#include "model/activations.h"
#include "model/limits.h"
#include "model/model_config.h"
#include "model/random_weights.h"
#include "model/rope_table.h"
#include "model/step_buffers.h"
#include "model/transformer.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

struct Point {
  bool is_prefill;  // rows of one sequence, else of one each
  std::int64_t rows;
  std::int64_t position;  // keys that each row sees; of a prompt's rows the last one
  std::int64_t sequences() const { return is_prefill ? 1 : rows; }
};

// Where a prompt's rows take the masked path, as a server measures it for this model's extents.
constexpr std::int64_t kMaskedUntil = 8192;

template <typename T>
T Must(Result<T>&& result) {
  DSA_CHECK(result.ok(), "{}", std::string_view(result.error().message));
  return std::move(result).value();
}
void Must(const Status& status) {
  DSA_CHECK(status.ok(), "{}", std::string_view(status.error().message));
}

template <typename T>
DeviceBuffer Uploaded(Backend& backend, const std::vector<T>& values) {
  DeviceBuffer buffer = Must(backend.Allocate(values.size() * sizeof(T)));
  backend.CopyToDevice(buffer.data(), values.data(), values.size() * sizeof(T));
  return buffer;
}

// Everything of a server but the engine: weights, caches full of random keys, buffers.
class Model final {
 public:
  Model(CudaBackend& backend, const std::string& folder, const std::vector<Point>& points)
      : backend_(backend), config_(Must(LoadModelConfig(folder))) {
    for (const Point& point : points) {
      rows_max_ = std::max(rows_max_, point.rows);
      sequences_max_ = std::max(sequences_max_, point.sequences());
      context_ = std::max(context_, point.position);
      has_prefill_ = has_prefill_ || point.is_prefill;
    }
    const StepLimits limits{.tokens_max = rows_max_,
                            .sequences_max = sequences_max_,
                            .table_rows_max = sequences_max_,
                            .context_max = context_ + kTokensPerBlock,
                            .logit_rows_max = sequences_max_,
                            .given_rows_max = 0,
                            .row_adjustments = 0,
                            .masked_until = has_prefill_ ? kMaskedUntil : 0,
                            .score_bytes_max = std::int64_t{256} << 20,
                            .logits_rows_host = 0};
    plan_ = PlanWorkspace(config_, WholeModel(config_), limits);
    weights_ = Must(MakeRandomWeights(config_, 0, backend_));
    blocks_each_ = BlockTableColumns(limits.context_max);
    arena_.emplace(Must(KvArena::Create(
        backend_, {.blocks = static_cast<std::int32_t>(sequences_max_ * blocks_each_),
                   .layers = static_cast<int>(config_.layers),
                   .indexer_layers = static_cast<int>(config_.indexer_layers()),
                   .format = config_.default_kv_format()})));
    activations_.emplace(Must(Activations::Create(backend_, plan_, config_.activation_type)));
    rope_.emplace(
        Must(DeviceRopeTable::Create(backend_, config_.rope_frequencies, limits.context_max)));
    Must(backend_.ReserveScratch(plan_.scratch));
    MakeTables();
    FillCaches();
  }

  const ModelConfig& config() const { return config_; }
  // Queues a step through `ops`, on the operands that Prepare has made.
  void Prepare(const Point& point);
  void Queue(Backend& ops, bool batch_invariant = false);
  // Of a layer with experts, in the mean, by what was queued since Prepare; waits.  0 without any.
  double ExpertsHit();

 private:
  // Blocks of a sequence lie far from each other.
  void MakeTables() {
    const std::int64_t blocks = sequences_max_ * blocks_each_;
    for (std::int64_t i = 0; i < blocks; ++i) {
      host_tables_.push_back(static_cast<std::int32_t>(i * 7919 % blocks));
    }
    DSA_CHECK(blocks % 7919 != 0, "{} blocks are a multiple of the stride", blocks);
    tables_ = Uploaded(backend_, host_tables_);
  }
  std::int64_t Slot(std::int64_t sequence, std::int64_t position) const {
    const auto entry =
        static_cast<std::size_t>(sequence * blocks_each_ + position / kTokensPerBlock);
    return host_tables_[entry] * std::int64_t{kTokensPerBlock} + position % kTokensPerBlock;
  }
  AnyMatrix Random(std::int64_t rows, std::int64_t cols);
  void FillCaches();
  StepShape ShapeOf(const Point& point) const;

  CudaBackend& backend_;
  ModelConfig config_;
  std::int64_t rows_max_ = 0;
  std::int64_t sequences_max_ = 0;
  bool has_prefill_ = false;
  std::int64_t context_ = 0;
  std::int64_t blocks_each_ = 0;
  WorkspacePlan plan_;
  DeviceWeights weights_;
  std::optional<KvArena> arena_;
  std::optional<Activations> activations_;
  std::optional<DeviceRopeTable> rope_;
  std::vector<std::int32_t> host_tables_;
  DeviceBuffer tables_;
  std::vector<DeviceBuffer> random_;
  // Of the step.
  StepShape shape_;
  DeviceBuffer ids_, positions_, sequences_, slots_, logit_rows_, sample_rows_, sampling_, outputs_;
};

AnyMatrix Model::Random(std::int64_t rows, std::int64_t cols) {
  const DataType type = config_.activation_type;
  random_.push_back(Must(backend_.Allocate(static_cast<std::size_t>(rows * cols * SizeOf(type)))));
  backend_.FillRandom({.data = random_.back().data(),
                       .type = type,
                       .size = rows * cols,
                       .seed = random_.size(),
                       .mean = 0.0F,
                       .deviation = 1.0F});
  return {
      .data = random_.back().data(), .type = type, .rows = rows, .cols = cols, .row_stride = cols};
}

// Every sequence has the same keys, in places of its own.
void Model::FillCaches() {
  const AnyMatrix kv = Random(context_, kLatentValues + kLatentRopeValues);
  const AnyMatrix k = Random(context_, kIndexerValues);
  std::vector<std::int32_t> positions;
  for (std::int64_t i = 0; i < context_; ++i) {
    positions.push_back(static_cast<std::int32_t>(i));
  }
  const DeviceBuffer device_positions = Uploaded(backend_, positions);
  for (std::int64_t sequence = 0; sequence < sequences_max_; ++sequence) {
    std::vector<std::int64_t> slots;
    for (std::int64_t i = 0; i < context_; ++i) {
      slots.push_back(Slot(sequence, i));
    }
    const DeviceBuffer device_slots = Uploaded(backend_, slots);
    const Vector<const std::int32_t> at{.data = device_positions.As<const std::int32_t>(),
                                        .size = context_};
    const Vector<const std::int64_t> to{.data = device_slots.As<const std::int64_t>(),
                                        .size = context_};
    for (int layer = 0; layer < static_cast<int>(config_.layers); ++layer) {
      const LayerWeights& weights = weights_.weights.layers[static_cast<std::size_t>(layer)];
      std::optional<StoreIndexerKeyParams> key;
      if (weights.indexer) {
        key = {.k = k,
               .norm_weight = weights.indexer->k_norm_weight,
               .norm_bias = weights.indexer->k_norm_bias,
               .eps = 1e-6F,
               .positions = at,
               .table = rope_->view(),
               .layout = config_.index_rope_layout,
               .slots = to,
               .cache = arena_->Indexer(layer)};
      }
      backend_.WriteKeys({.query_latent = {},
                          .query_norm_weight = {},
                          .query_norm_eps = 0.0F,
                          .latent = {.kv = kv,
                                     .norm_weight = weights.attention.kv_a_norm,
                                     .eps = config_.latent_norm_eps,
                                     .positions = at,
                                     .table = rope_->view(),
                                     .layout = RopeLayout::kInterleaved,
                                     .slots = to,
                                     .cache = arena_->Latent(layer)},
                          .indexer_key = key});
    }
    backend_.Synchronize();
  }
}

// All rows on one path, which the last one decides.
StepShape Model::ShapeOf(const Point& point) const {
  const bool selects = config_.has_indexer() && point.position > config_.index_topk;
  const std::int64_t visible = RoundUpVisible(point.position, context_ + kTokensPerBlock);
  AttentionPath path = selects ? AttentionPath::kSparse : AttentionPath::kDense;
  if (!point.is_prefill) {
    return DecodeShape(point.rows, path, visible);
  }
  if (point.position <= kMaskedUntil) {
    path = selects ? AttentionPath::kMaskedSelected : AttentionPath::kMaskedAll;
  }
  StepShape shape{.tokens = point.rows,
                  .logit_rows = 1,
                  .samples = 1,
                  .table_updates = 1,
                  .rows = {},
                  .visible_max = visible,
                  .rows_per_sequence = 0};
  shape.rows.at(static_cast<std::size_t>(path)) = point.rows;
  return shape;
}

void Model::Prepare(const Point& point) {
  shape_ = ShapeOf(point);
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> sequences;
  std::vector<std::int64_t> slots;
  for (std::int64_t row = 0; row < point.rows; ++row) {
    const std::uint64_t bits = CounterBits(7, static_cast<std::uint64_t>(row));
    const std::int64_t sequence = point.is_prefill ? 0 : row;
    const std::int64_t position =
        point.position - 1 - (point.is_prefill ? point.rows - 1 - row : 0);
    ids.push_back(static_cast<std::int32_t>(bits % static_cast<std::uint64_t>(config_.vocabulary)));
    positions.push_back(static_cast<std::int32_t>(position));
    sequences.push_back(static_cast<std::int32_t>(sequence));
    slots.push_back(Slot(sequence, position));
  }
  std::vector<std::int32_t> logit_rows;  // of the batch
  std::vector<std::int32_t> sample_rows;
  std::vector<SamplingRow> sampling;
  for (std::int64_t row = 0; row < shape_.logit_rows; ++row) {
    logit_rows.push_back(static_cast<std::int32_t>(point.is_prefill ? point.rows - 1 : row));
    sample_rows.push_back(static_cast<std::int32_t>(row));
    sampling.push_back({.temperature = 0.0F,
                        .min_p = 0.0F,
                        .top_p = 1.0F,
                        .top_k = 0,
                        .seed = 1,
                        .position = point.position,
                        .adjustments_first = 0,
                        .adjustments_count = 0,
                        .top_logprobs = 0});
  }
  ids_ = Uploaded(backend_, ids);
  logit_rows_ = Uploaded(backend_, logit_rows);
  sample_rows_ = Uploaded(backend_, sample_rows);
  sequences_ = Uploaded(backend_, sequences);
  slots_ = Uploaded(backend_, slots);
  sampling_ = Uploaded(backend_, sampling);
  positions_ = Uploaded(backend_, positions);
  outputs_ =
      Must(backend_.Allocate(static_cast<std::size_t>(OutputBytes(shape_, ExpertsOf(config_)))));
  backend_.Zero(outputs_.data(), outputs_.bytes());
  backend_.Synchronize();
}

void Model::Queue(Backend& ops, bool batch_invariant) {
  Transformer transformer({.backend = ops,
                           .config = config_,
                           .weights = weights_.weights,
                           .rope_table = rope_->view(),
                           .arena = *arena_,
                           .activations = *activations_,
                           .rank = WholeModel(config_),
                           .batch_invariant = batch_invariant});
  const std::int64_t rows = shape_.tokens;
  const StepOutputs outputs = OutputsAt(outputs_.As<std::uint8_t>(), shape_, ExpertsOf(config_));
  const auto integers = [&](const DeviceBuffer& buffer, std::int64_t count) {
    return Vector<const std::int32_t>{.data = buffer.As<const std::int32_t>(), .size = count};
  };
  const Matrix<const float> logits =
      transformer.Forward(shape_, {.token_ids = integers(ids_, rows),
                                   .positions = integers(positions_, rows),
                                   .slots = {.data = slots_.As<const std::int64_t>(), .size = rows},
                                   .sequences = integers(sequences_, rows),
                                   .block_tables = {.data = tables_.As<const std::int32_t>(),
                                                    .rows = sequences_max_,
                                                    .cols = blocks_each_,
                                                    .row_stride = blocks_each_},
                                   .logit_rows = integers(logit_rows_, shape_.logit_rows),
                                   .row_faults = outputs.row_faults,
                                   .expert_pairs = outputs.expert_pairs});
  ops.Sample({.logits = logits,
              .logit_rows = integers(sample_rows_, shape_.samples),
              .rows = {.data = sampling_.As<const SamplingRow>(), .size = shape_.samples},
              .adjustments = {.data = nullptr, .size = 0},
              .masks = {},
              .vocabulary_limit = static_cast<std::int32_t>(config_.vocabulary),
              .tokens = outputs.tokens,
              .logprobs = outputs.logprobs,
              .top_ids = outputs.top_ids,
              .top_logprobs = outputs.top_logprobs,
              .faults = outputs.sample_faults});
}

double Model::ExpertsHit() {
  const Matrix<std::int32_t> pairs =
      OutputsAt(outputs_.As<std::uint8_t>(), shape_, ExpertsOf(config_)).expert_pairs;
  std::vector<std::int32_t> counts(static_cast<std::size_t>(pairs.rows * pairs.cols));
  backend_.CopyToHost(counts.data(), pairs.data, counts.size() * sizeof(std::int32_t));
  backend_.Synchronize();
  const auto hit =
      std::count_if(counts.begin(), counts.end(), [](std::int32_t count) { return count > 0; });
  return pairs.rows == 0 ? 0.0 : static_cast<double>(hit) / static_cast<double>(pairs.rows);
}

// Nodes of a graph of what `body` queues.
std::size_t Launches(const CudaBackend& backend, const std::function<void()>& body) {
  cudaGraph_t graph = nullptr;
  std::size_t nodes = 0;
  DSA_CUDA_CHECK(cudaStreamBeginCapture(backend.stream(), cudaStreamCaptureModeThreadLocal));
  body();
  DSA_CUDA_CHECK(cudaStreamEndCapture(backend.stream(), &graph));
  DSA_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
  DSA_CUDA_CHECK(cudaGraphDestroy(graph));
  return nodes;
}

void BenchPoint(const DeviceBench& bench, Model& model, const CardCeilings& ceilings,
                const Point& point) {
  constexpr GraphId kStep{0};
  CudaBackend& backend = bench.backend();
  const auto last = static_cast<double>(point.position);
  const auto rows = static_cast<double>(point.rows);
  SectionBackend sections(backend, ceilings,
                          {.visible = last - (point.is_prefill ? (rows - 1.0) / 2.0 : 0.0),
                           .distinct = point.is_prefill ? last : rows * last});
  model.Prepare(point);
  const auto queue = [&] { model.Queue(sections); };
  const auto measure = [&] {
    if (point.is_prefill) {
      return bench.Measure(queue);
    }
    backend.Record(kStep, queue);
    return bench.Measure([&] { backend.Replay(kStep); });
  };
  sections.Want({});
  queue();  // plans products
  const double experts_hit = model.ExpertsHit();
  sections.Want({});
  const std::size_t launches = Launches(backend, queue);
  double floor_us = 0.0;
  for (std::size_t i = 0; i < kSectionNames.size(); ++i) {
    floor_us += sections.floor_us(static_cast<Section>(i));
  }
  const DeviceTiming step = measure();
  bench.Heading(point.is_prefill
                    ? fmt::format("prefill step, {} rows up to {}", point.rows, point.position)
                    : fmt::format("decode step, {} rows at {} tokens", point.rows, point.position));
  fmt::print(
      "{:<32} {:>10.1f} us [{:.1f}, {:.1f}]  floor {:.1f} us, {:.2f} times; {} launches, "
      "{:.1f} experts hit\n",
      "step", step.median, step.p10, step.p90, floor_us, step.median / floor_us, launches,
      experts_hit);
  double sum_us = 0.0;
  double layer_launches = 0.0;
  for (std::size_t i = 0; i < kSectionNames.size(); ++i) {
    const auto section = static_cast<Section>(i);
    sections.Want(section);
    const auto nodes = static_cast<double>(Launches(backend, queue));
    const SectionWork work = sections.work(section);
    const double floor = sections.floor_us(section);
    if (work.calls == 0) {
      continue;
    }
    const double median = measure().median;
    sum_us += median;
    const double calls = work.calls;
    const bool is_of_layer = work.calls > model.config().layers / 2;
    if (is_of_layer) {
      layer_launches += nodes / calls * (section == Section::kAddNorm ? 2.0 : 1.0);
    }
    fmt::print(
        "{:<32} {:>10.1f} us = {:>3} x {:>7.1f}  floor {:>7.1f}  {:>5.2f} times  {:>4.1f} "
        "launches each\n",
        kSectionNames.at(i), median, work.calls, median / calls, floor / calls, median / floor,
        nodes / calls);
  }
  fmt::print("{:<32} {:>10.1f} us  {:+.1f} % of the step; a layer with experts: {:.1f} launches\n",
             "sum of the sections", sum_us, 100.0 * (sum_us / step.median - 1.0), layer_launches);
  sections.Want({});
  backend.Record(kStep, [&] { model.Queue(sections, true); });
  const double invariant = bench.Measure([&] { backend.Replay(kStep); }).median;
  fmt::print("{:<32} {:>10.1f} us  {:+.1f} % of the step\n", "step, batch_invariant", invariant,
             100.0 * (invariant / step.median - 1.0));
}

CardCeilings MeasureCeilings() {
  const std::unique_ptr<CudaBackend> backend = Must(CudaBackend::Make(0));
  constexpr std::int64_t kSide = 8192;
  ScratchLimits limits{};
  limits.tokens_max = kSide;
  limits.linear_width_max = kSide;
  limits.context_max = kTokensPerBlock;
  limits.heads = 1;
  limits.nope = 128;
  limits.value = 128;
  limits.hidden = 128;
  limits.logit_rows_max = 1;
  limits.vocabulary = 128;
  Must(backend->ReserveScratch(limits));
  DeviceBench bench(*backend);
  bench.MeasureCeilings();
  return bench.ceilings();
}

int Main(const std::string& folder, const std::vector<Point>& points) {
  if (auto made = CudaBackend::Make(0); !made.ok()) {
    fmt::print(stderr, "{}\n", made.error().message);
    return ExitCode(made.error());
  }
  const CardCeilings ceilings = MeasureCeilings();
  const std::unique_ptr<CudaBackend> backend = Must(CudaBackend::Make(0));
  const DeviceBench bench(*backend);
  Model model(*backend, folder, points);
  for (const Point& point : points) {
    BenchPoint(bench, model, ceilings, point);
  }
  return 0;
}

}  // namespace
}  // namespace dsa::bench

int main(int argc, char** argv) {
  std::vector<dsa::bench::Point> points;
  int i = 2;
  while (i < argc) {
    const bool is_prefill = std::string_view(argv[i]) == "prefill";
    i += is_prefill ? 1 : 0;
    if (i + 1 >= argc) {
      break;
    }
    points.push_back({.is_prefill = is_prefill,
                      .rows = std::strtoll(argv[i], nullptr, 10),
                      .position = std::strtoll(argv[i + 1], nullptr, 10)});
    const dsa::bench::Point& point = points.back();
    if (point.rows < 1 || point.position < (is_prefill ? point.rows : 1)) {
      fmt::print(stderr,
                 "dsa_step_bench: rows {} and position {}: both must be at least 1, and a prompt's "
                 "position its rows\n",
                 argv[i], argv[i + 1]);
      return 2;
    }
    i += 2;
  }
  if (points.empty() || i != argc) {
    fmt::print(stderr, "usage: dsa_step_bench FOLDER [prefill] ROWS POSITION ...\n");
    return 2;
  }
  return dsa::bench::Main(argv[1], points);
}
