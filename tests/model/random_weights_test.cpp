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

TEST_CASE("Random weights of ranks are the parts of one rank's", "[model][weights]") {
  RandomCheckpointOptions options = SmallOptions();
  options.type = GENERATE(CheckpointType::kFp8, CheckpointType::kF32);
  const auto expert_parallel = GENERATE(false, true);
  options.heads = 4;  // two of them end with a whole block of scales
  options.nope = 64;
  options.value = 64;
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
