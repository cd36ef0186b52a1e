// What each rank holds of a model, for DeepSeek-V3.2's sizes.
#include "model/rank_shape.h"

#include <cstdlib>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {

TEST_CASE("parts of ranks cover a model and do not overlap", "[model][ranks]") {
  ModelConfig config;
  config.heads = 128;
  config.nope = 128;
  config.value = 128;
  config.dense_width = 18432;
  config.expert_width = 2048;
  config.shared_width = 2048;
  config.experts = 256;
  config.vocabulary = 129281;
  config.layers = 61;
  config.quantized = true;
  // 128 ranks of a head: 192 query rows, one and a half blocks of scales.
  CHECK(TensorParallelSizes(config) == std::vector<std::int64_t>{1, 2, 4, 8, 16, 32, 64});
  config.quantized = false;
  CHECK(TensorParallelSizes(config).back() == 128);
  for (const std::int64_t ranks : {1, 8, 32}) {
    std::int64_t heads = 0;
    std::int64_t dense = 0;
    std::int64_t expert = 0;
    std::int64_t vocabulary = 0;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      const RankShape shape = ShapeOf(config, {.rank = rank, .layout = {.ranks = ranks}});
      CHECK(shape.heads == Part{heads, 128 / ranks});
      CHECK(shape.dense_width.first == dense);
      CHECK(shape.expert_width.first == expert);
      CHECK(shape.vocabulary.first == vocabulary);
      CHECK(shape.shared_width == shape.expert_width);
      CHECK(shape.dense_width.count % 128 == 0);
      CHECK(std::abs(shape.dense_width.count - 18432 / ranks) < 128);
      CHECK(std::abs(shape.vocabulary.count - 129281 / ranks) <= 1);
      CHECK(shape.experts == Part{0, 256});
      heads += shape.heads.count;
      dense += shape.dense_width.count;
      expert += shape.expert_width.count;
      vocabulary += shape.vocabulary.count;
    }
    const RankShape with_experts =
        ShapeOf(config, {.rank = ranks - 1, .layout = {.ranks = ranks, .expert_parallel = true}});
    CHECK(with_experts.experts == Part{256 - 256 / ranks, 256 / ranks});
    CHECK(with_experts.expert_width == Part{0, 2048});
    CHECK(heads == 128);
    CHECK(dense == 18432);
    CHECK(expert == 2048);  // sixteen blocks: of 32 ranks every second has one
    CHECK(vocabulary == 129281);
  }
}

}  // namespace dsa
