// Keys of config.json that nobody has heard of, and RoPE's parameters in two spellings at once.
#include "common/file.h"
#include "model/model_config.h"
#include "tests/paths.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace dsa {
namespace {

using Document = nlohmann::ordered_json;

Document Tiny() {
  const auto text = ReadFile(testing::SourcePath("models/dsa-tiny/config.json"), 1 << 20);
  REQUIRE(text.ok());
  return Document::parse(text.value());
}

// "" where the file is accepted.
std::string Refusal(const Document& json) {
  const auto parsed = ParseModelConfig(json.dump(), "", "d");
  return parsed.ok() ? "" : parsed.error().message;
}

Document With(std::string_view key, const Document& value) {
  Document json = Tiny();
  json[std::string(key)] = value;
  return json;
}

}  // namespace

TEST_CASE("a key that says how layers are built is refused unless it says as they are",
          "[model][config]") {
  const std::vector<std::pair<std::string, Document>> refused = {
      {"use_alibi", true},
      {"attn_scale", 0.1},
      {"dual_chunk_attention_config", {{"chunk_size", 8192}}},
      {"interleave_moe_layer_step", 2},
      {"k_norm", true},
      {"use_q_norm", true},
      {"attn_output_gate", true},
      {"use_parallel_residual", true},
      {"use_post_norm", true},
      {"sandwich_norm", true},
  };
  for (const auto& [key, value] : refused) {
    CAPTURE(key);
    CHECK(Refusal(With(key, value)).find("d/config.json: " + key + ": ") == 0);
    CHECK(Refusal(With(key, nullptr)).empty());
    if (value == true) {
      CHECK(Refusal(With(key, false)).empty());
    }
  }
  CHECK(Refusal(With("interleave_moe_layer_step", 1)).empty());
  CHECK(Refusal(With("norm_topk_prob", true)).empty());
}

TEST_CASE("RoPE's parameters may stand in both spellings at once where they say the same",
          "[model][config]") {
  Document newer = Tiny()["rope_scaling"];
  newer["rope_type"] = newer["type"];
  newer.erase("type");
  newer["rope_theta"] = Tiny()["rope_theta"];
  CHECK(Refusal(With("rope_parameters", newer)).empty());
  Document other = newer;
  other["factor"] = 4;
  CHECK(Refusal(With("rope_parameters", other)).find("d/config.json: rope_scaling: ") == 0);
  other = newer;
  other["rope_type"] = "default";
  CHECK(Refusal(With("rope_parameters", other)).find("d/config.json: rope_scaling: ") == 0);
  other = newer;
  other["type"] = "default";
  CHECK(Refusal(With("rope_parameters", other)).find("d/config.json: rope_scaling: ") == 0);
  other = newer;
  other["rope_theta"] = 5000;
  CHECK(Refusal(With("rope_parameters", other)).find("d/config.json: rope_theta: ") == 0);
  Document without = With("rope_parameters", newer);
  without["rope_scaling"] = nullptr;  // as good as absent
  CHECK(Refusal(without).empty());
}

}  // namespace dsa
