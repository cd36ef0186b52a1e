// Slices of a model: what they are called, what they keep, what they refuse.
#include "model/model_slice.h"

#include "model/random_weights.h"
#include "model/rank_shape.h"
#include "tests/paths.h"

#include <string>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

ModelConfig Whole() {
  return LoadModelConfig(testing::SourcePath("configs/models/deepseek-v32")).value();
}

ModelConfig Sliced(const std::string& text) {
  return SliceOf(Whole(), ParseModelSlice(text).value()).value();
}

}  // namespace

TEST_CASE("a slice of layers keeps the first ones, with all experts", "[slice]") {
  const ModelConfig config = Sliced("layers=8");
  CHECK(config.layers == 8);
  CHECK(config.dense_layers == 3);
  CHECK(config.experts == 256);
  CHECK(config.expert_groups == 8);
  CHECK(config.mtp_layers == 0);
  CHECK(Sliced("layers=2").dense_layers == 2);
  CHECK(Sliced("all").layers == 61);
  CHECK(Sliced("all").mtp_layers == 1);
}

TEST_CASE("a rank's slice of the experts is the hand-made configuration of it", "[slice]") {
  const ModelConfig config = Sliced("ep32");
  const ModelConfig made =
      LoadModelConfig(testing::SourcePath("configs/models/deepseek-v32-ep32")).value();
  CHECK(config.experts == made.experts);
  CHECK(config.expert_groups == 1);
  CHECK(config.expert_groups_kept == 1);
  CHECK(config.experts_per_token == made.experts_per_token);
  CHECK(config.layers == made.layers);
  CHECK(config.context_max == made.context_max);
  CHECK(config.softmax_scale == made.softmax_scale);
  const std::int64_t bytes = RandomWeightBytes(config, WholeModel(config));
  CHECK(bytes == RandomWeightBytes(made, WholeModel(made)));
  CHECK(bytes / 1'000'000'000 == 41);
}

TEST_CASE("slices come together, in any order", "[slice]") {
  for (const char* text : {"ep32,layers=8", "layers=8,ep32"}) {
    const ModelConfig config = Sliced(text);
    CHECK(config.layers == 8);
    CHECK(config.experts == 8);
  }
  CHECK(Sliced("ep1").experts == 256);
}

TEST_CASE("an unknown slice is told with what there is", "[slice]") {
  for (const char* text : {"", "ep", "ep0", "ep-1", "epx", "ep32x", "layers", "layers=", "layers=0",
                           "layers=8,", ",layers=8", "layers=8,layers=7", "ep32,ep16", "all,ep32",
                           "ep 32", "layers=99999999999999999999"}) {
    CAPTURE(text);
    const auto slice = ParseModelSlice(text);
    REQUIRE_FALSE(slice.ok());
    CHECK(slice.error().message.find("slice: '" + std::string(text) + "' is not all, epN") == 0);
  }
  const ModelConfig whole = Whole();
  const auto refused = [&whole](const std::string& text) {
    return SliceOf(whole, ParseModelSlice(text).value()).error().message;
  };
  CHECK(refused("layers=62") == "slice: layers=62 of a model with 61");
  CHECK(refused("ep64").find("ep64 of a model with 256 routed experts") != std::string::npos);
  CHECK(refused("ep3").find("ep3 of a model") != std::string::npos);
}

}  // namespace dsa
