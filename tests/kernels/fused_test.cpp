// The fused ops: OverrideCheck holds an override to its default body.  A backend without overrides
// agrees with itself to the last bit; a fault planted in any output of any op is named.
#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/override_check.h"
#include "tests/kernels/paged_cache.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::DeviceArray;
using testing::DeviceTensor;

constexpr std::int64_t kHidden = 256;
constexpr std::int64_t kQueryLatent = 128;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kNope = 24;
constexpr std::int64_t kValue = 64;
constexpr std::int64_t kInner = 128;
constexpr std::int64_t kIndexHeads = 4;
constexpr std::int64_t kTopK = 16;
constexpr std::int64_t kContext = 128;
constexpr std::int64_t kExperts = 4;
constexpr std::int64_t kExpertsPerToken = 2;
constexpr DataType kType = DataType::kBf16;

// Operands of every fused op for rows of two sequences in groups of two, past top-k.
class Layer final {
 public:
  explicit Layer(std::int64_t score_rows = 3)
      : score_rows_(score_rows),
        rows_({.positions = {70, 71, 72, 73, 40, 41}, .sequences = {0, 0, 0, 0, 1, 1}, .group = 2}),
        layout_(testing::ShuffledBlocks(2, kContext / 64, 3)),
        device_rows_(backend_, rows_, layout_),
        rope_(backend_, 32, rows_.positions) {
    auto latents = testing::EmptyLatents(KvFormat::kFp8, layout_.blocks);
    auto keys = testing::EmptyIndexerKeys(KvFormat::kFp8, layout_.blocks);
    for (std::int64_t sequence = 0; sequence < 2; ++sequence) {
      for (std::int64_t position = 0; position < kContext; ++position) {
        const auto seed = static_cast<std::uint32_t>(sequence * 1000 + position);
        const std::int64_t slot = layout_.Slot(sequence, position);
        testing::EncodeLatent(KvFormat::kFp8, latents, slot, testing::RandomFloat(576, 1.0F, seed));
        testing::EncodeIndexerKey(KvFormat::kFp8, keys, slot,
                                  testing::RandomFloat(128, 1.0F, seed + 500));
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

  // The ops, each on operands of its own.
  AddNormParams AddNorm() {
    return {.x = Random(kHidden).View(),
            .residual = Random(kHidden).View(),
            .weight = Floats(kHidden),
            .eps = 1e-6F,
            .y = Fp8(Random(kHidden))};
  }
  ProjectParams Project() {
    return {.x = Quantized(kHidden),
            .projections = {
                {{.weight = Weight(kQueryLatent, kHidden), .y = Random(kQueryLatent).View()},
                 {.weight = Fp8Weight(192, kHidden), .y = Random(192).View()},
                 {.weight = Fp8Weight(128, kHidden), .y = Random(128).View()}}}};
  }
  WriteKeysParams WriteKeys() {
    const PagedRows rows = device_rows_.View();
    return {.query_latent = Fp8(Random(kQueryLatent)),
            .query_norm_weight = Floats(kQueryLatent),
            .query_norm_eps = 1e-6F,
            .latent = {.kv = Random(576).View(),
                       .norm_weight = Floats(512),
                       .eps = 1e-6F,
                       .positions = rows.positions,
                       .table = rope_.View(),
                       .layout = RopeLayout::kInterleaved,
                       .slots = slots_->AsConstVector(),
                       .cache = Latents()},
            .indexer_key = StoreIndexerKeyParams{.k = Random(128).View(),
                                                 .norm_weight = Floats(128),
                                                 .norm_bias = Floats(128),
                                                 .eps = 1e-6F,
                                                 .positions = rows.positions,
                                                 .table = rope_.View(),
                                                 .layout = RopeLayout::kHalfSplit,
                                                 .slots = slots_->AsConstVector(),
                                                 .cache = Keys()}};
  }
  SelectKeysParams SelectKeys() {
    return {.q = Random(kIndexHeads * 128).Heads(kIndexHeads),
            .head_weights = Random(kIndexHeads, DataType::kF32).View(),
            .table = rope_.View(),
            .layout = RopeLayout::kHalfSplit,
            .cache = Keys(),
            .rows = device_rows_.View(),
            .k = kTopK,
            .slots = Integers<std::int32_t>(kTopK),
            .mask = Integers<std::uint64_t>(kContext / 64),
            .counts = {.data = Integers<std::int32_t>(1).data, .size = rows_.size()},
            .faults = {.data = Integers<std::int32_t>(1).data, .size = rows_.size()},
            .queries = Random(kIndexHeads * 128, DataType::kFp8E4m3).Heads(kIndexHeads),
            .weights = FloatRows(kIndexHeads, rows_.size()),
            .scores = FloatRows(kContext, score_rows_)};
  }
  AttendParams Attend() {
    return {.q = Random(kHeads * (kNope + 64)).Heads(kHeads),
            .table = rope_.View(),
            .layout = RopeLayout::kInterleaved,
            .w_uk = HeadWeight(kNope),
            .w_uv = HeadWeight(kValue),
            .cache = Latents(),
            .rows = device_rows_.View(),
            .selection = {},
            .softmax_scale = 0.1,
            .o = Fp8(Random(kHeads * kValue))};
  }
  AttendLatentParams AttendLatent() {
    return {.attend = Attend(),
            .q_latent = Random(kHeads * 512).Heads(kHeads),
            .o_latent = Random(kHeads * 512).Heads(kHeads)};
  }
  AttendMaskedParams AttendMasked() { return {.attend = Attend()}; }
  GatedMlpParams GatedMlp() {
    return {.x = Quantized(kHidden),
            .gate = Fp8Weight(kInner, kHidden),
            .up = Fp8Weight(kInner, kHidden),
            .down = Fp8Weight(kHidden, kInner),
            .inner = Fp8(Random(kInner)),
            .up_output = Random(kInner).View(),
            .y = Random(kHidden).View()};
  }
  ExpertMlpParams ExpertMlp() {
    const GatedMlpParams shared = GatedMlp();
    const auto experts = Integers<std::int32_t>(kExpertsPerToken);
    const auto weights = FloatRows(kExpertsPerToken, rows_.size());
    return {.gate = {.x = shared.x.x,
                     .weight = Weight(kExperts, kHidden).weight,
                     .bias = Floats(kExperts),
                     .groups = 1,
                     .groups_kept = 1,
                     .normalize = true,
                     .scale = 1.0F,
                     .experts = experts,
                     .weights = weights},
            .shared = shared,
            .routed = {.x = shared.x.x,
                       .gate = Stack(kInner, kHidden),
                       .up = Stack(kInner, kHidden),
                       .down = Stack(kHidden, kInner),
                       .experts = AsConst(experts),
                       .weights = AsConst(weights),
                       .shared = shared.y,
                       .scale_format = ScaleFormat::kPowerOfTwo,
                       .y = shared.y}};
  }

 private:
  template <typename T>
  static Matrix<const T> AsConst(const Matrix<T>& m) {
    return {.data = m.data, .rows = m.rows, .cols = m.cols, .row_stride = m.row_stride};
  }
  DeviceTensor& Random(std::int64_t cols, DataType type = kType) {
    return RandomRows(rows_.size(), cols, type);
  }
  DeviceTensor& RandomRows(std::int64_t rows, std::int64_t cols, DataType type) {
    return *tensors_.emplace_back(
        std::make_unique<DeviceTensor>(backend_, type, testing::Dense(rows, cols),
                                       testing::RandomFloat(rows * cols, 1.0F, ++seed_)));
  }
  Matrix<float> FloatRows(std::int64_t cols, std::int64_t rows) {
    return {.data = static_cast<float*>(RandomRows(rows, cols, DataType::kF32).View().data),
            .rows = rows,
            .cols = cols,
            .row_stride = cols};
  }
  Vector<const float> Floats(std::int64_t size) {
    return {.data = FloatRows(size, 1).data, .size = size};
  }
  template <typename T>
  Matrix<T> Integers(std::int64_t cols) {
    const std::int64_t bytes = rows_.size() * cols * static_cast<std::int64_t>(sizeof(T));
    const auto& memory = integers_.emplace_back(std::make_unique<DeviceArray<std::uint8_t>>(
        backend_, std::vector<std::uint8_t>(static_cast<std::size_t>(bytes), 0)));
    return {.data = reinterpret_cast<T*>(memory->data()),
            .rows = rows_.size(),
            .cols = cols,
            .row_stride = cols};
  }
  // Room for an fp8 copy beside `tensor`.
  Activation Fp8(const DeviceTensor& tensor) {
    const AnyMatrix x = tensor.View();
    return {.x = x,
            .fp8 = {.values = {.data = static_cast<Fp8E4m3*>(
                                   Random(x.cols, DataType::kFp8E4m3).View().data),
                               .rows = x.rows,
                               .cols = x.cols,
                               .row_stride = x.cols},
                    .scales = FloatRows(Fp8Blocks(x.cols), x.rows),
                    .format = ScaleFormat::kPowerOfTwo}};
  }
  Activation Quantized(std::int64_t cols) {
    const Activation activation = Fp8(Random(cols));
    Quantize(backend_, activation);
    return activation;
  }
  LinearWeight Weight(std::int64_t outputs, std::int64_t inputs) {
    return {.weight = RandomRows(outputs, inputs, kType).View(), .scales = {}};
  }
  LinearWeight Fp8Weight(std::int64_t outputs, std::int64_t inputs) {
    return {.weight = RandomRows(outputs, inputs, DataType::kFp8E4m3).View(),
            .scales = AsConst(FloatRows(Fp8Blocks(inputs), Fp8Blocks(outputs)))};
  }
  ConstAnyTensor3 HeadWeight(std::int64_t rows) {
    return {.data = RandomRows(kHeads * rows, 512, kType).View().data,
            .type = kType,
            .rows = kHeads,
            .heads = rows,
            .cols = 512,
            .row_stride = rows * 512,
            .head_stride = 512};
  }
  StackedWeight Stack(std::int64_t outputs, std::int64_t inputs) {
    return {.data = RandomRows(kExperts * outputs, inputs, kType).View().data,
            .type = kType,
            .scales = nullptr,
            .experts = kExperts,
            .rows = outputs,
            .cols = inputs};
  }
  LatentCacheView Latents() const {
    return {.data = latents_->data(), .blocks = layout_.blocks, .format = KvFormat::kFp8};
  }
  IndexerCacheView Keys() const {
    return {.data = keys_->data(), .blocks = layout_.blocks, .format = KvFormat::kFp8};
  }

  Backend& backend_ = testing::TestBackend();
  std::int64_t score_rows_;
  testing::RowList rows_;
  testing::PagedLayout layout_;
  testing::DeviceRows device_rows_;
  testing::RopeTables rope_;
  std::optional<DeviceArray<std::uint8_t>> latents_;
  std::optional<DeviceArray<std::uint8_t>> keys_;
  std::optional<DeviceArray<std::int64_t>> slots_;
  std::vector<std::unique_ptr<DeviceTensor>> tensors_;
  std::vector<std::unique_ptr<DeviceArray<std::uint8_t>>> integers_;
  std::uint32_t seed_ = 100;
};

void RunAll(Backend& backend) {
  Layer layer;
  backend.AddNorm(layer.AddNorm());
  backend.Project(layer.Project());
  backend.WriteKeys(layer.WriteKeys());
  backend.SelectKeys(layer.SelectKeys());
  backend.AttendLatent(layer.AttendLatent());
  backend.AttendMasked(layer.AttendMasked());
  backend.GatedMlp(layer.GatedMlp());
  backend.ExpertMlp(layer.ExpertMlp());
}

// Changes the sign of a float, or a bit of an id: `byte` is its highest.
void Flip(Backend& backend, void* byte, unsigned bit) {
  std::uint8_t value = 0;
  backend.CopyToHost(&value, byte, 1);
  backend.Synchronize();
  value = static_cast<std::uint8_t>(value ^ bit);
  backend.CopyToDevice(byte, &value, 1);
}
void FlipSign(Backend& backend, const AnyMatrix& matrix) {
  Flip(backend, static_cast<std::uint8_t*>(matrix.data) + SizeOf(matrix.type) - 1, 0x80U);
}

// Overrides every op with its default body and damages one output of one op.
class FaultyOverrides final : public ForwardingBackend {
 public:
  FaultyOverrides(Backend& inner, std::string fault)
      : ForwardingBackend(inner), fault_(std::move(fault)) {}

  void AddNorm(const AddNormParams& params) override {
    Backend::AddNorm(params);
    At("AddNorm y", params.y.x);
    At("AddNorm residual", params.residual);
    if (fault_ == "AddNorm fp8 copy") {
      Flip(inner_, params.y.fp8.values.data, 0x80U);
    }
    if (fault_ == "AddNorm fp8 scales") {
      Flip(inner_, reinterpret_cast<std::uint8_t*>(params.y.fp8.scales.data) + 3, 0x80U);
    }
  }
  void Project(const ProjectParams& params) override {
    Backend::Project(params);
    At("Project y[0]", params.projections[0].y);
    At("Project y[2]", params.projections[2].y);
  }
  void WriteKeys(const WriteKeysParams& params) override {
    Backend::WriteKeys(params);
    At("WriteKeys query latent", params.query_latent.x);
    std::int64_t slot = 0;
    inner_.CopyToHost(&slot, params.latent.slots.data + 4, sizeof(slot));
    inner_.Synchronize();
    const std::int64_t block = slot / 64;
    const auto token = static_cast<int>(slot % 64);
    std::uint8_t* const latent = params.latent.cache.data + block * LatentBlock::kBytes;
    if (fault_ == "WriteKeys latent") {
      Flip(inner_, latent + LatentBlock::Values(token), 0x80U);
    }
    if (fault_ == "WriteKeys RoPE key") {
      Flip(inner_, latent + LatentBlock::Rope(token) + 1, 0x80U);
    }
    if (fault_ == "WriteKeys indexer key scale") {
      Flip(inner_,
           params.indexer_key->cache.data + block * IndexerBlock::kBytes +
               IndexerBlock::Scale(token) + 3,
           0x80U);
    }
  }
  void SelectKeys(const SelectKeysParams& params) override {
    Backend::SelectKeys(params);
    if (fault_ == "SelectKeys slots") {
      Flip(inner_, params.slots.data + 5, 1U);
    }
    if (fault_ == "SelectKeys mask") {
      Flip(inner_, params.mask.data, 1U);
    }
    if (fault_ == "SelectKeys counts") {
      Flip(inner_, params.counts.data, 1U);
    }
  }
  void AttendLatent(const AttendLatentParams& params) override {
    Backend::AttendLatent(params);
    At("AttendLatent o", params.attend.o.x);
  }
  void AttendMasked(const AttendMaskedParams& params) override {
    Backend::AttendMasked(params);
    At("AttendMasked o", params.attend.o.x);
  }
  void GatedMlp(const GatedMlpParams& params) override {
    Backend::GatedMlp(params);
    At("GatedMlp y", params.y);
  }
  void ExpertMlp(const ExpertMlpParams& params) override {
    // Of its own ops only: a fault in GatedMlp is GatedMlp's.
    inner_.ExpertMlp(params);
    At("ExpertMlp y", params.routed.y);
    if (fault_ == "ExpertMlp experts") {
      Flip(inner_, params.gate.experts.data, 1U);
    }
  }

 private:
  void At(const std::string& name, const AnyMatrix& matrix) {
    if (fault_ == name) {
      FlipSign(inner_, matrix);
    }
  }
  std::string fault_;
};

std::vector<std::string> Names(const std::vector<OverrideDifference>& differences) {
  std::vector<std::string> names;
  for (const OverrideDifference& difference : differences) {
    names.push_back(difference.op + " " + difference.output);
  }
  return names;
}

}  // namespace

TEST_CASE("a backend without overrides agrees with the default bodies", "[kernels][fused]") {
  OverrideCheck check(testing::TestBackend());
  RunAll(check);
  CHECK(Names(check.Faults(0.0)).empty());
  // Nothing was left out, and what ops read and write was restored in between.
  CHECK(Names(check.Differences()) ==
        std::vector<std::string>{"AddNorm fp8 copy",      "AddNorm fp8 scales",
                                 "AddNorm residual",      "AddNorm y",
                                 "AttendLatent fp8 copy", "AttendLatent fp8 scales",
                                 "AttendLatent o",        "AttendLatent q",
                                 "AttendMasked fp8 copy", "AttendMasked fp8 scales",
                                 "AttendMasked o",        "AttendMasked q",
                                 "ExpertMlp experts",     "ExpertMlp weights",
                                 "ExpertMlp y",           "GatedMlp y",
                                 "Project y[0]",          "Project y[1]",
                                 "Project y[2]",          "SelectKeys counts",
                                 "SelectKeys faults",     "SelectKeys mask",
                                 "SelectKeys slots",      "WriteKeys RoPE key",
                                 "WriteKeys fp8 copy",    "WriteKeys fp8 scales",
                                 "WriteKeys indexer key", "WriteKeys indexer key scale",
                                 "WriteKeys latent",      "WriteKeys latent scales",
                                 "WriteKeys query latent"});
}

TEST_CASE("a fault in an override is named", "[kernels][fused]") {
  const std::string fault =
      GENERATE(as<std::string>(), "AddNorm y", "AddNorm residual", "AddNorm fp8 copy",
               "AddNorm fp8 scales", "Project y[0]", "Project y[2]", "WriteKeys query latent",
               "WriteKeys latent", "WriteKeys RoPE key", "WriteKeys indexer key scale",
               "SelectKeys slots", "SelectKeys mask", "SelectKeys counts", "AttendLatent o",
               "AttendMasked o", "GatedMlp y", "ExpertMlp y", "ExpertMlp experts");
  CAPTURE(fault);
  FaultyOverrides faulty(testing::TestBackend(), fault);
  OverrideCheck check(faulty);
  RunAll(check);
  CHECK(Names(check.Faults(1e-5)) == std::vector<std::string>{fault});
}

TEST_CASE("SelectKeys selects the same however many rows are scored at a time",
          "[kernels][fused]") {
  Backend& backend = testing::TestBackend();
  const auto run = [&](std::int64_t score_rows) {
    Layer layer(score_rows);
    const SelectKeysParams params = layer.SelectKeys();
    backend.SelectKeys(params);
    std::vector<std::int32_t> slots(static_cast<std::size_t>(params.slots.rows * kTopK));
    backend.CopyToHost(slots.data(), params.slots.data, slots.size() * sizeof(std::int32_t));
    backend.Synchronize();
    return slots;
  };
  const std::vector<std::int32_t> all = run(6);
  CHECK(std::find(all.begin(), all.end(), -1) == all.end());  // every row sees more keys than K
  for (const std::int64_t score_rows : {2, 3, 5}) {
    CHECK(run(score_rows) == all);
  }
}

}  // namespace dsa
