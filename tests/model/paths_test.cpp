// The masked path, forced on, against the sparse one, at every border; and faults of single rows.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/masked_attention.h"
#include "kernels/ops/select_top_k.h"
#include "tests/model/golden.h"
#include "tests/model/sequence_runner.h"

#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

// Computes every row of the masked path by the absorbed form too and keeps the largest relative
// distance of a row's attention output.
// The keys that a mask admits as a list of slots.
class Slots final {
 public:
  explicit Slots(const MaskedAttentionParams& params) {
    const Matrix<const std::uint64_t>& mask = params.selection.mask;
    cols_ = mask.cols * 64;
    for (std::int64_t row = 0; row < mask.rows; ++row) {
      const std::int32_t* const table =
          params.rows.block_tables.Row(params.rows.sequences.data[row]);
      std::int32_t count = 0;
      for (std::int64_t position = 0; position < cols_; ++position) {
        if ((mask.Row(row)[position / 64] >> (position % 64) & 1U) != 0) {
          slots_.push_back(static_cast<std::int32_t>(table[position / 64] * 64 + position % 64));
          ++count;
        }
      }
      counts_.push_back(count);
      slots_.resize(counts_.size() * static_cast<std::size_t>(cols_), -1);
    }
  }
  KeySelection View() const {
    const auto rows = static_cast<std::int64_t>(counts_.size());
    if (rows == 0) {
      return {};
    }
    return {.slots = {.data = slots_.data(), .rows = rows, .cols = cols_, .row_stride = cols_},
            .counts = {.data = counts_.data(), .size = rows},
            .mask = {},
            .positions = {}};
  }

 private:
  std::vector<std::int32_t> slots_;
  std::vector<std::int32_t> counts_;
  std::int64_t cols_ = 0;
};

class MaskedAgainstLatent final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  double distance_max = 0;
  std::int64_t rows = 0;
  std::int64_t rows_selecting = 0;

  void SelectTopK(const SelectTopKParams& params) override {
    inner_.SelectTopK(params);
    rows_selecting += params.scores.rows;
  }
  void MaskedAttention(const MaskedAttentionParams& params) override {
    inner_.MaskedAttention(params);
    const std::int64_t heads = params.q.heads;
    const std::int64_t nope = params.w_uk.heads;
    const std::int64_t value = params.w_uv.heads;
    std::vector<std::uint8_t> absorbed = Memory(params, kLatentWidth);
    std::vector<std::uint8_t> latent = Memory(params, kLatentWidth);
    std::vector<std::uint8_t> expanded = Memory(params, value);
    const auto tensor = [&](std::vector<std::uint8_t>& memory, std::int64_t cols) {
      return AnyTensor3{.data = memory.data(),
                        .type = params.q.type,
                        .rows = params.q.rows,
                        .heads = heads,
                        .cols = cols,
                        .row_stride = heads * cols,
                        .head_stride = cols};
    };
    const Slots selection(params);
    ConstAnyTensor3 q_nope = params.q;
    q_nope.cols = nope;
    ConstAnyTensor3 q_rope = params.q;
    q_rope.data = static_cast<const std::uint8_t*>(params.q.data) + nope * SizeOf(params.q.type);
    q_rope.cols = kRopeWidth;
    inner_.AbsorbQuery(
        {.q_nope = q_nope, .w_uk = params.w_uk, .q_latent = tensor(absorbed, kLatentWidth)});
    inner_.LatentAttention({.q_latent = tensor(absorbed, kLatentWidth),
                            .q_rope = q_rope,
                            .cache = params.cache,
                            .rows = params.rows,
                            .selection = selection.View(),
                            .softmax_scale = params.softmax_scale,
                            .o_latent = tensor(latent, kLatentWidth)});
    inner_.ExpandValue({.o_latent = tensor(latent, kLatentWidth),
                        .w_uv = params.w_uv,
                        .o = tensor(expanded, value)});
    Compare(params.o, tensor(expanded, value));
  }

 private:
  static std::vector<std::uint8_t> Memory(const MaskedAttentionParams& params, std::int64_t cols) {
    return std::vector<std::uint8_t>(
        static_cast<std::size_t>(params.q.rows * params.q.heads * cols * SizeOf(params.q.type)));
  }
  static float At(const AnyTensor3& tensor, std::int64_t row, std::int64_t index) {
    const std::int64_t at = row * tensor.row_stride + index;
    return tensor.type == DataType::kF32 ? static_cast<const float*>(tensor.data)[at]
                                         : ToFloat(static_cast<const Bf16*>(tensor.data)[at]);
  }
  void Compare(const AnyTensor3& masked, const AnyTensor3& sparse) {
    for (std::int64_t row = 0; row < masked.rows; ++row) {
      double difference = 0;
      double norm = 0;
      for (std::int64_t i = 0; i < masked.heads * masked.cols; ++i) {
        difference += std::pow(At(masked, row, i) - At(sparse, row, i), 2);
        norm += std::pow(At(sparse, row, i), 2);
      }
      const double distance = std::sqrt(difference / norm);
      distance_max = distance <= distance_max ? distance_max : distance;  // a NaN stays
      ++rows;
    }
  }
};

// Puts a NaN among the scores of one position.
class NanScore final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void IndexerLogits(const IndexerLogitsParams& params) override {
    inner_.IndexerLogits(params);
    for (std::int64_t row = 0; row < params.scores.rows; ++row) {
      if (params.rows.positions.data[row] == 45) {
        params.scores.Row(row)[7] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
};

std::vector<std::int32_t> FirstIds(const GoldenCase& golden_case, std::int64_t tokens) {
  return {golden_case.ids.begin(), golden_case.ids.begin() + tokens};
}

}  // namespace

TEST_CASE("masked attention agrees with the sparse path per attention output", "[model][paths]") {
  const auto [name, bound] = GENERATE(table<std::string, double>({{"v32_f32", 1e-6},
                                                                  {"v32_bf16", 1.5e-2},
                                                                  {"v32_fp8", 3e-2},
                                                                  {"glm_fp8", 3e-2},
                                                                  {"v32_fp8_odd", 3e-2},
                                                                  {"v3_bf16", 1.5e-2}}));
  const GoldenCase& golden_case = FindGoldenCase(name);
  // Around top-k (16 or 24), inside a block, at its end and behind it, and everywhere.
  for (const std::int64_t until : {1, 15, 16, 17, 25, 63, 64, 65, 512}) {
    CpuBackend cpu(2);
    MaskedAgainstLatent backend(cpu);
    const TestModel model(CheckpointFolder(name, golden_case.options), cpu);
    RunOptions options;
    options.kv_format = model.config.default_kv_format();
    options.masked_until = until;
    options.step_tokens_max = 48;  // chunks end on both sides of the borders
    SequenceRunner runner(backend, model.loaded(), options);
    runner.Run({{.prompt = golden_case.ids}});
    const auto tokens = static_cast<std::int64_t>(golden_case.ids.size());
    CAPTURE(name, until, backend.distance_max);
    CHECK(backend.rows == std::min(until, tokens) * golden_case.options.layers);
    CHECK(backend.distance_max <= bound);
  }
}

TEST_CASE("only rows of a prompt are masked, and without selection none selects",
          "[model][paths]") {
  const GoldenCase& golden_case = FindGoldenCase("v32_fp8");
  CpuBackend cpu(2);
  MaskedAgainstLatent backend(cpu);
  const TestModel model(CheckpointFolder(golden_case.name, golden_case.options), cpu);
  RunOptions options;
  options.kv_format = model.config.default_kv_format();
  options.masked_until = 512;
  options.attention = GENERATE(AttentionMode::kSparse, AttentionMode::kDense);
  SequenceRunner runner(backend, model.loaded(), options);
  runner.Run({{.prompt = FirstIds(golden_case, 70), .max_tokens = 6}});
  CHECK(backend.rows == 70 * golden_case.options.layers);
  CHECK((backend.rows_selecting == 0) == (options.attention == AttentionMode::kDense));
}

TEST_CASE("prompts that end at a border agree with the reference", "[model][paths]") {
  const std::string name = GENERATE(as<std::string>(), "v32_f32", "v32_fp8", "glm_fp8");
  const GoldenCase& golden_case = FindGoldenCase(name);
  const GoldenArray golden = LoadGolden(name).at("logits");
  const std::int64_t topk = golden_case.options.index_topk;
  for (const std::int64_t tokens : {std::int64_t{1}, topk - 1, topk, topk + 1, std::int64_t{63},
                                    std::int64_t{64}, std::int64_t{65}}) {
    CpuBackend backend(2);
    const TestModel model(CheckpointFolder(name, golden_case.options), backend);
    RunOptions options;
    options.kv_format = model.config.default_kv_format();
    options.step_tokens_max = 32;
    SequenceRunner runner(backend, model.loaded(), options);
    const auto output = runner.Run({{.prompt = FirstIds(golden_case, tokens)}}).front();
    const GoldenArray part{
        .shape = {tokens, golden.row_size()},
        .values = {golden.values.begin(), golden.values.begin() + tokens * golden.row_size()}};
    CAPTURE(name, tokens);
    CHECK(CheckLogits(golden_case, CompareLogits(golden_case, part, output.logits)) ==
          std::vector<std::string>{});
  }
}

TEST_CASE("a NaN score is reported for its sequence and harms no other", "[model][paths]") {
  const GoldenCase& golden_case = FindGoldenCase("v32_fp8");
  const auto run = [&](bool faulty) {
    CpuBackend cpu(2);
    NanScore nan(cpu);
    const TestModel model(CheckpointFolder(golden_case.name, golden_case.options), cpu);
    RunOptions options;
    options.kv_format = model.config.default_kv_format();
    SequenceRunner runner(faulty ? static_cast<Backend&>(nan) : cpu, model.loaded(), options);
    return runner.Run(
        {{.prompt = FirstIds(golden_case, 70)}, {.prompt = FirstIds(golden_case, 40)}});
  };
  const auto sound = run(false);
  const auto harmed = run(true);
  CHECK_FALSE(sound[0].faulty);
  CHECK(harmed[0].faulty);
  CHECK_FALSE(harmed[1].faulty);
  CHECK(harmed[1].logits == sound[1].logits);
}

}  // namespace dsa::testing
