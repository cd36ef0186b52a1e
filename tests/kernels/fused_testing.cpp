#include "tests/kernels/fused_testing.h"

#include "common/view_parts.h"
#include "kernels/ops/fill_random.h"

#include <algorithm>
#include <cmath>

namespace dsa::testing {
namespace {

// Rows of sequence 0, then as many or fewer of sequence 1, the last of each at its end.
RowList RowsOf(const LayerSizes& sizes) {
  RowList rows{.positions = {}, .sequences = {}, .group = sizes.group};
  const std::int64_t groups = sizes.rows / sizes.group;
  const std::int64_t first = (groups + 1) / 2 * sizes.group;
  for (std::int64_t row = 0; row < sizes.rows; ++row) {
    const bool is_first = row < first;
    const std::int64_t end = is_first ? first : sizes.rows;
    rows.sequences.push_back(is_first ? 0 : 1);
    rows.positions.push_back(static_cast<std::int32_t>(sizes.context - (end - row)));
  }
  return rows;
}

Matrix<float> AsFloats(const AnyMatrix& m) {
  return {.data = static_cast<float*>(m.data),
          .rows = m.rows,
          .cols = m.cols,
          .row_stride = m.row_stride};
}

constexpr float kNeverAScore = 1e30F;  // that is left where SelectKeys forgets to score

// The deviation of a weight that keeps the size of what it multiplies.
float WeightDeviation(std::int64_t inputs) {
  return 1.0F / std::sqrt(static_cast<float>(inputs));
}

}  // namespace

FusedLayer::FusedLayer(Backend& backend, const LayerSizes& sizes, KvFormat format)
    : backend_(backend),
      sizes_(sizes),
      format_(format),
      type_(format == KvFormat::kF32 ? DataType::kF32 : DataType::kBf16),
      rows_(RowsOf(sizes)),
      layout_(ShuffledBlocks(2, sizes.context / 64, 3)),
      device_rows_(backend_, rows_, layout_),
      rope_(backend_, 32, rows_.positions) {
  auto latents = EmptyLatents(format, layout_.blocks);
  auto keys = EmptyIndexerKeys(format, layout_.blocks);
  const auto values = RandomFloat(sizes.context + 576, 1.0F, 1);
  for (std::int64_t sequence = 0; sequence < 2; ++sequence) {
    for (std::int64_t position = 0; position < sizes.context; ++position) {
      const std::int64_t slot = layout_.Slot(sequence, position);
      // Windows of the same values, apart from one another by their sign and start.
      std::vector<float> window(values.begin() + position, values.begin() + position + 576);
      for (float& value : window) {
        value = sequence == 0 ? value : -0.7F * value;
      }
      EncodeLatent(format, latents, slot, window);
      std::reverse(window.begin(), window.end());
      EncodeIndexerKey(format, keys, slot, std::span<const float>(window).first(128));
    }
  }
  latents_.emplace(backend_, latents);
  keys_.emplace(backend_, keys);
  std::vector<std::int64_t> slots;
  for (std::size_t row = 0; row < rows_.positions.size(); ++row) {
    slots.push_back(layout_.Slot(rows_.sequences[row], rows_.positions[row]));
  }
  slots_.emplace(backend_, slots);
}

AddNormParams FusedLayer::AddNorm() {
  return {.x = Random(sizes_.hidden),
          .residual = Random(sizes_.hidden),
          .weight = Floats(sizes_.hidden),
          .eps = 1e-6F,
          .y = WithFp8(Poisoned(type_, sizes_.hidden))};
}

AddNormParams FusedLayer::AddNormWithoutResidual() {
  return {.x = Random(sizes_.hidden),
          .residual = NullMatrix(type_),
          .weight = Floats(sizes_.hidden),
          .eps = 1e-6F,
          .y = {.x = Poisoned(type_, sizes_.hidden)}};
}

ProjectParams FusedLayer::Project() {
  const std::int64_t latent = kLatentValues + kLatentRopeValues;
  return {.x = Quantized(sizes_.hidden),
          .projections = {
              {{.weight = Weight(sizes_.index_heads, sizes_.hidden),
                .y = Poisoned(DataType::kF32, sizes_.index_heads)},
               {.weight = Fp8Weight(sizes_.query_latent, sizes_.hidden),
                .y = Poisoned(type_, sizes_.query_latent)},
               {.weight = Fp8Weight(latent, sizes_.hidden), .y = Poisoned(type_, latent)}}}};
}

ProjectParams FusedLayer::ProjectAndAbsorb() {
  const std::int64_t width = sizes_.heads * (sizes_.nope + kLatentRopeValues);
  const std::int64_t index_width = sizes_.index_heads * 128;
  const AnyMatrix q = Poisoned(type_, width);
  return {.x = Quantized(sizes_.query_latent),
          .projections = {{{.weight = Fp8Weight(width, sizes_.query_latent), .y = q},
                           {.weight = Fp8Weight(index_width, sizes_.query_latent),
                            .y = Poisoned(type_, index_width)}}},
          .absorbed = ProjectedQueries{
              .queries = {.q = HeadsOf(q, sizes_.heads),
                          .table = rope_.View(),
                          .layout = RopeLayout::kInterleaved,
                          .w_uk = HeadWeight(sizes_.nope),
                          .q_latent = HeadsOf(Poisoned(type_, sizes_.heads * 512), sizes_.heads)},
              .positions = device_rows_.View().positions}};
}

WriteKeysParams FusedLayer::WriteKeys() {
  WriteKeysParams params = WriteKeysWithoutIndexer();
  params.indexer_key = StoreIndexerKeyParams{.k = Random(128),
                                             .norm_weight = Floats(128),
                                             .norm_bias = Floats(128),
                                             .eps = 1e-6F,
                                             .positions = device_rows_.View().positions,
                                             .table = rope_.View(),
                                             .layout = RopeLayout::kHalfSplit,
                                             .slots = slots_->AsConstVector(),
                                             .cache = Keys()};
  return params;
}

WriteKeysParams FusedLayer::WriteKeysWithoutIndexer() {
  return {.query_latent = WithFp8(Random(sizes_.query_latent)),
          .query_norm_weight = Floats(sizes_.query_latent),
          .query_norm_eps = 1e-6F,
          .latent = {.kv = Random(576),
                     .norm_weight = Floats(512),
                     .eps = 1e-6F,
                     .positions = device_rows_.View().positions,
                     .table = rope_.View(),
                     .layout = RopeLayout::kInterleaved,
                     .slots = slots_->AsConstVector(),
                     .cache = Latents()},
          .indexer_key = std::nullopt};
}

SelectKeysParams FusedLayer::SelectKeys() {
  const std::int64_t heads = sizes_.index_heads;
  const DataType query = format_ == KvFormat::kFp8 ? DataType::kFp8E4m3 : type_;
  const Matrix<std::int32_t> counts = PoisonedIntegers<std::int32_t>(1);
  const Matrix<std::int32_t> faults = PoisonedIntegers<std::int32_t>(1);
  std::vector<std::int32_t> none(static_cast<std::size_t>(rows_.size()), 0);
  backend_.CopyToDevice(faults.data, none.data(), none.size() * sizeof(std::int32_t));
  return {.q = HeadsOf(Random(heads * 128), heads),
          .head_weights = Filled(DataType::kF32, rows_.size(), heads, 0.0F, 1.0F),
          .table = rope_.View(),
          .layout = RopeLayout::kHalfSplit,
          .cache = Keys(),
          .rows = device_rows_.View(),
          .k = sizes_.top_k,
          .slots = PoisonedIntegers<std::int32_t>(sizes_.top_k),
          .mask = PoisonedIntegers<std::uint64_t>(sizes_.context / 64),
          .counts = {.data = counts.data, .size = rows_.size()},
          .faults = {.data = faults.data, .size = rows_.size()},
          .queries = HeadsOf(Poisoned(query, heads * 128), heads),
          .weights = AsFloats(Poisoned(DataType::kF32, heads)),
          .scores = AsFloats(
              Filled(DataType::kF32, sizes_.score_rows, sizes_.context, kNeverAScore, 0.0F))};
}

SelectKeysParams FusedLayer::SelectKeysAndAbsorb() {
  SelectKeysParams params = SelectKeys();
  params.absorbed = QueriesOf(AttendLatent());
  return params;
}

AttendParams FusedLayer::Attend() {
  const std::int64_t heads = sizes_.heads;
  return {.q = HeadsOf(Random(heads * (sizes_.nope + 64)), heads),
          .table = rope_.View(),
          .layout = RopeLayout::kInterleaved,
          .w_uk = HeadWeight(sizes_.nope),
          .w_uv = HeadWeight(sizes_.value),
          .cache = Latents(),
          .rows = device_rows_.View(),
          .selection = {},
          .softmax_scale = 0.1,
          .o = WithFp8(Poisoned(type_, heads * sizes_.value))};
}

AttendLatentParams FusedLayer::AttendLatent() {
  const std::int64_t heads = sizes_.heads;
  return {.attend = Attend(),
          .q_latent = HeadsOf(Poisoned(type_, heads * 512), heads),
          .o_latent = HeadsOf(Poisoned(type_, heads * 512), heads)};
}

AttendLatentParams FusedLayer::AttendLatentSelected() {
  AttendLatentParams params = AttendLatent();
  params.attend.selection = Selection();
  return params;
}

AttendLatentParams FusedLayer::AttendLatentFp8() {
  AttendLatentParams params = AttendLatentSelected();
  if (format_ == KvFormat::kFp8 && sizes_.value % 128 == 0) {
    params.attend.w_uv_fp8 = Fp8HeadWeight(sizes_.value);
  }
  return params;
}

AttendLatentParams FusedLayer::AttendAbsorbed() {
  AttendLatentParams params = AttendLatentSelected();
  params.q_latent = HeadsOf(Random(sizes_.heads * 512), sizes_.heads);
  params.is_absorbed = true;
  return params;
}

// Every other key or so, in ascending position; one row fewer than top_k.
KeySelection FusedLayer::Selection() {
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> counts;
  for (std::size_t row = 0; row < rows_.positions.size(); ++row) {
    const std::int64_t count = row == 1 ? sizes_.top_k / 2 + 1 : sizes_.top_k;
    const std::int64_t visible = rows_.positions[row] + 1;
    for (std::int64_t i = 0; i < sizes_.top_k; ++i) {
      slots.push_back(i < count ? static_cast<std::int32_t>(
                                      layout_.Slot(rows_.sequences[row], i * visible / count))
                                : -1);
    }
    counts.push_back(static_cast<std::int32_t>(count));
  }
  const Matrix<std::int32_t> device_slots = PoisonedIntegers<std::int32_t>(sizes_.top_k);
  const Matrix<std::int32_t> device_counts = PoisonedIntegers<std::int32_t>(1);
  backend_.CopyToDevice(device_slots.data, slots.data(), slots.size() * sizeof(std::int32_t));
  backend_.CopyToDevice(device_counts.data, counts.data(), counts.size() * sizeof(std::int32_t));
  KeySelection selection{};
  selection.slots = AsConst(device_slots);
  selection.counts = {.data = device_counts.data, .size = rows_.size()};
  return selection;
}

AttendMaskedParams FusedLayer::AttendMasked() {
  return {.attend = Attend()};
}

GatedMlpParams FusedLayer::GatedMlp() {
  return {.x = Quantized(sizes_.hidden),
          .gate = Fp8Weight(sizes_.inner, sizes_.hidden),
          .up = Fp8Weight(sizes_.inner, sizes_.hidden),
          .down = Fp8Weight(sizes_.hidden, sizes_.inner),
          .inner = WithFp8(Poisoned(type_, sizes_.inner)),
          .up_output = Poisoned(type_, sizes_.inner),
          .y = Poisoned(type_, sizes_.hidden)};
}

ExpertMlpParams FusedLayer::ExpertMlp() {
  const GatedMlpParams shared = GatedMlp();
  const auto experts = PoisonedIntegers<std::int32_t>(sizes_.experts_per_token);
  const Matrix<float> weights = AsFloats(Poisoned(DataType::kF32, sizes_.experts_per_token));
  const std::int64_t all = sizes_.experts * sizes_.ranks;
  const auto pairs = PoisonedIntegers<std::int32_t>(all);  // one row is used
  return {.gate = {.x = shared.x.x,
                   .weight = Weight(all, sizes_.hidden).weight,
                   .bias = Floats(all),
                   .groups = 1,
                   .groups_kept = 1,
                   .normalize = true,
                   .scale = 1.0F,
                   .experts = experts,
                   .weights = weights,
                   .expert_pairs = {.data = pairs.data, .size = all}},
          .shared = shared,
          .routed = {.x = shared.x.x,
                     .gate = Stack(sizes_.inner, sizes_.hidden),
                     .up = Stack(sizes_.inner, sizes_.hidden),
                     .down = Stack(sizes_.hidden, sizes_.inner),
                     .first_expert = sizes_.ranks / 2 * sizes_.experts,
                     .experts = AsConst(experts),
                     .weights = AsConst(weights),
                     .shared = shared.y,
                     .scale_format = ScaleFormat::kPowerOfTwo,
                     .y = shared.y}};
}

AnyMatrix FusedLayer::Random(std::int64_t cols) {
  return tensors_
      .emplace_back(std::make_unique<DeviceTensor>(backend_, type_, Dense(rows_.size(), cols),
                                                   RandomFloat(rows_.size() * cols, 1.0F, ++seed_)))
      ->View();
}

// Made on the device: weights of the real model take seconds on the host.
AnyMatrix FusedLayer::Filled(DataType type, std::int64_t rows, std::int64_t cols, float mean,
                             float deviation) {
  auto buffer = backend_.Allocate(static_cast<std::size_t>(rows * cols) *
                                  static_cast<std::size_t>(SizeOf(type)));
  REQUIRE(buffer.ok());
  filled_.push_back(std::move(buffer).value());
  backend_.FillRandom({.data = filled_.back().data(),
                       .type = type,
                       .size = rows * cols,
                       .seed = ++seed_,
                       .mean = mean,
                       .deviation = deviation});
  return {
      .data = filled_.back().data(), .type = type, .rows = rows, .cols = cols, .row_stride = cols};
}

AnyMatrix FusedLayer::Poisoned(DataType type, std::int64_t cols) {
  return tensors_
      .emplace_back(std::make_unique<DeviceTensor>(
          DeviceTensor::Poisoned(backend_, type, Dense(rows_.size(), cols))))
      ->View();
}

// Of a weight that keeps the size of what it multiplies; `rows` by `cols` blocks.
Matrix<float> FusedLayer::Scales(std::int64_t rows, std::int64_t cols, std::int64_t inputs) {
  const float mean = WeightDeviation(inputs);
  return AsFloats(Filled(DataType::kF32, rows, cols, mean, 0.2F * mean));
}

Vector<const float> FusedLayer::Floats(std::int64_t size) {
  return {.data = static_cast<const float*>(Filled(DataType::kF32, 1, size, 0.0F, 1.0F).data),
          .size = size};
}

template <typename T>
Matrix<T> FusedLayer::PoisonedIntegers(std::int64_t cols) {
  const auto& memory = integers_.emplace_back(
      std::make_unique<DeviceArray<std::uint8_t>>(DeviceArray<std::uint8_t>::Poisoned(
          backend_, rows_.size() * cols * static_cast<std::int64_t>(sizeof(T)))));
  return {.data = reinterpret_cast<T*>(memory->data()),
          .rows = rows_.size(),
          .cols = cols,
          .row_stride = cols};
}

// Room for an fp8 copy beside `x`.
Activation FusedLayer::WithFp8(const AnyMatrix& x) {
  return {
      .x = x,
      .fp8 = {.values = {.data = static_cast<Fp8E4m3*>(Poisoned(DataType::kFp8E4m3, x.cols).data),
                         .rows = x.rows,
                         .cols = x.cols,
                         .row_stride = x.cols},
              .scales = AsFloats(Poisoned(DataType::kF32, Fp8Blocks(x.cols))),
              .format = ScaleFormat::kPowerOfTwo}};
}

Activation FusedLayer::Quantized(std::int64_t cols) {
  const Activation activation = WithFp8(Random(cols));
  Quantize(backend_, activation);
  return activation;
}

LinearWeight FusedLayer::Weight(std::int64_t outputs, std::int64_t inputs) {
  return {.weight = Filled(type_, outputs, inputs, 0.0F, WeightDeviation(inputs)), .scales = {}};
}

LinearWeight FusedLayer::Fp8Weight(std::int64_t outputs, std::int64_t inputs) {
  return {.weight = Filled(DataType::kFp8E4m3, outputs, inputs, 0.0F, 1.0F),
          .scales = AsConst(Scales(Fp8Blocks(outputs), Fp8Blocks(inputs), inputs))};
}

ConstAnyTensor3 FusedLayer::HeadWeight(std::int64_t rows) {
  return {.data = Filled(type_, sizes_.heads * rows, 512, 0.0F, WeightDeviation(512)).data,
          .type = type_,
          .rows = sizes_.heads,
          .heads = rows,
          .cols = 512,
          .row_stride = rows * 512,
          .head_stride = 512};
}

ScaledHeads FusedLayer::Fp8HeadWeight(std::int64_t rows) {
  const LinearWeight weight = Fp8Weight(sizes_.heads * rows, 512);
  return {.values = {.data = weight.weight.data,
                     .type = weight.weight.type,
                     .rows = sizes_.heads,
                     .heads = rows,
                     .cols = 512,
                     .row_stride = rows * 512,
                     .head_stride = 512},
          .scales = weight.scales};
}

// Fp8 where a block of scales is whole, as the model's; small ones in the activations' type.
StackedWeight FusedLayer::Stack(std::int64_t outputs, std::int64_t inputs) {
  const bool is_fp8 = format_ == KvFormat::kFp8;
  const DataType type = is_fp8 ? DataType::kFp8E4m3 : type_;
  const std::int64_t blocks = Fp8Blocks(outputs) * sizes_.experts;
  return {.data = Filled(type, sizes_.experts * outputs, inputs, 0.0F,
                         is_fp8 ? 1.0F : WeightDeviation(inputs))
                      .data,
          .type = type,
          .scales = is_fp8 ? Scales(blocks, Fp8Blocks(inputs), inputs).data : nullptr,
          .experts = sizes_.experts,
          .rows = outputs,
          .cols = inputs};
}

LatentCacheView FusedLayer::Latents() const {
  return {.data = latents_->data(), .blocks = layout_.blocks, .format = format_};
}

IndexerCacheView FusedLayer::Keys() const {
  return {.data = keys_->data(), .blocks = layout_.blocks, .format = format_};
}

void RunFusedOps(Backend& backend, FusedLayer& layer) {
  backend.AddNorm(layer.AddNorm());
  backend.AddNorm(layer.AddNormWithoutResidual());
  backend.Project(layer.Project());
  backend.Project(layer.ProjectAndAbsorb());
  backend.WriteKeys(layer.WriteKeys());
  backend.WriteKeys(layer.WriteKeysWithoutIndexer());
  backend.SelectKeys(layer.SelectKeys());
  backend.AttendLatent(layer.AttendLatent());
  backend.AttendLatent(layer.AttendLatentSelected());
  backend.GatedMlp(layer.GatedMlp());
  backend.ExpertMlp(layer.ExpertMlp());
  backend.SelectKeys(layer.SelectKeysAndAbsorb());
  backend.AttendLatent(layer.AttendAbsorbed());
  backend.AttendLatent(layer.AttendLatentFp8());
}

void CheckDifferences(const OverrideCheck& check) {
  for (const OverrideDifference& difference : check.Differences()) {
    CAPTURE(difference.op, difference.output);
    CHECK(difference.relative_error <= OverrideTolerance(difference));
  }
}

}  // namespace dsa::testing
