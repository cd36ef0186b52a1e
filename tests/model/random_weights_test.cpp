// Random weights of ranks: cuts of those of one rank.
#include "model/random_weights.h"

#include "kernels/cpu/cpu_backend.h"
#include "model/rank_shape.h"
#include "tests/model/checkpoint_files.h"
#include "tests/temporary_folder.h"

#include <cstddef>
#include <cstring>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

// Values of W_UV that its two copies do not agree on.
std::int64_t CountDifferent(const AttentionWeights& weights) {
  const ConstAnyTensor3& w_uv = weights.w_uv;
  const auto* values = static_cast<const Bf16*>(w_uv.data);
  const auto* codes = static_cast<const Fp8E4m3*>(weights.w_uv_fp8.values.data);
  std::int64_t different = 0;
  for (std::int64_t row = 0; row < w_uv.rows * w_uv.heads; ++row) {
    for (std::int64_t col = 0; col < w_uv.cols; ++col) {
      const std::int64_t i = row * w_uv.cols + col;
      const float scale = weights.w_uv_fp8.scales.Row(row / 128)[col / 128];
      different += ToFloat(values[i]) != ToFloat(codes[i]) * scale ? 1 : 0;
    }
  }
  return different;
}

}  // namespace

TEST_CASE("Random weights of ranks are the parts of one rank's", "[model][weights]") {
  RandomCheckpointOptions options = SmallOptions();
  options.type = GENERATE(CheckpointType::kFp8, CheckpointType::kF32);
  const auto expert_parallel = GENERATE(false, true);
  options.heads = 4;  // two of them end with a whole block of scales
  options.nope = GENERATE(as<std::int64_t>(), 64, 128);  // of 128 W_UV is kept as fp8 too
  options.value = options.nope;
  options.expert_width = 256;
  options.dense_width = 384;  // three blocks: two on the first rank
  const TemporaryFolder folder;
  MustWrite(options, folder.path());
  const ModelConfig config = LoadModelConfig(folder.path()).value();
  CpuBackend backend(1);
  const DeviceWeights whole = MakeRandomWeights(config, 5, backend).value();
  const RankShape second =
      ShapeOf(config, {.rank = 1, .layout = {.ranks = 2, .expert_parallel = expert_parallel}});
  const DeviceWeights part = MakeRandomWeights(config, second, 5, backend).value();
  // Values of `got` from row and column `first` of `of` on.
  const auto is_part = [](const ConstAnyMatrix& got, const ConstAnyMatrix& of, std::int64_t row,
                          std::int64_t col) {
    bool same = got.rows > 0 && got.cols > 0;
    for (std::int64_t r = 0; r < got.rows; ++r) {
      const auto* a =
          static_cast<const std::byte*>(got.data) + r * got.row_stride * SizeOf(got.type);
      const auto* b = static_cast<const std::byte*>(of.data) +
                      ((row + r) * of.row_stride + col) * SizeOf(of.type);
      same = same && std::memcmp(a, b, static_cast<std::size_t>(got.cols * SizeOf(got.type))) == 0;
    }
    return same;
  };
  const AttentionWeights& attention = part.weights.layers[1].attention;
  const AttentionWeights& of_whole = whole.weights.layers[1].attention;
  CHECK(is_part(attention.o.weight, of_whole.o.weight, 0, second.heads.first * config.value));
  CHECK(is_part(attention.q_b.weight, of_whole.q_b.weight,
                second.heads.first * (config.nope + kRopeWidth), 0));
  CHECK(is_part(attention.kv_a.weight, of_whole.kv_a.weight, 0, 0));
  CHECK(is_part(part.weights.head, whole.weights.head, second.vocabulary.first, 0));
  const auto heads = [](const auto& w) {
    return ConstAnyMatrix{.data = w.data,
                          .type = w.type,
                          .rows = 1,
                          .cols = w.rows * w.heads * w.cols,
                          .row_stride = w.rows * w.heads * w.cols};
  };
  const ConstAnyMatrix w_uv = heads(attention.w_uv);
  CHECK(is_part(w_uv, heads(of_whole.w_uv), 0, w_uv.cols));
  const ConstAnyMatrix codes = heads(attention.w_uv_fp8.values);
  REQUIRE((codes.data != nullptr) == (options.type == CheckpointType::kFp8 && options.nope == 128));
  if (codes.data != nullptr) {
    CHECK(is_part(codes, heads(of_whole.w_uv_fp8.values), 0, codes.cols));
    CHECK(CountDifferent(attention) == 0);
  }
  CHECK(is_part(part.weights.layers[0].dense->down.weight,
                whole.weights.layers[0].dense->down.weight, 0, second.dense_width.first));
  const MoeWeights& moe = *part.weights.layers[1].moe;
  const MoeWeights& all = *whole.weights.layers[1].moe;
  const auto expert = [](const StackedWeight& stack, std::int64_t index) {
    return ConstAnyMatrix{.data = static_cast<const std::byte*>(stack.data) +
                                  index * stack.rows * stack.cols * SizeOf(stack.type),
                          .type = stack.type,
                          .rows = stack.rows,
                          .cols = stack.cols,
                          .row_stride = stack.cols};
  };
  CHECK(is_part(expert(moe.expert_down, 1), expert(all.expert_down, second.experts.first + 1), 0,
                second.expert_width.first));
  CHECK_FALSE(is_part(expert(moe.expert_down, 1), expert(all.expert_down, second.experts.first), 0,
                      second.expert_width.first));
}

}  // namespace dsa::testing
