// The report of `dsa inspect` counts what is there and names what is wrong.
#include "model/inspect.h"

#include "tests/model/checkpoint_files.h"

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MustWrite;
using testing::SmallOptions;
using testing::TemporaryFolder;

bool Contains(const std::string& text, const std::string& line) {
  return text.find(line) != std::string::npos;
}

}  // namespace

TEST_CASE("The report shows graph, sizes, cache and defaults", "[model][inspect]") {
  const TemporaryFolder folder;
  MustWrite({}, folder.path());
  const std::string report = InspectCheckpoint(folder.path()).value();
  INFO(report);
  CHECK(Contains(report, "architecture    deepseek_v32\n"));
  CHECK(Contains(report, "layers          4: 1 dense, 3 with experts; 0 MTP layers left aside\n"));
  CHECK(Contains(report, "selection       top 64 by 8 index heads, half-split RoPE\n"));
  CHECK(Contains(report, "weights         F8_E4M3 with 128x128 scales (ue8m0) and BF16\n"));
  // 4 layers of 656 + 132, 1152 + 256, 2304 + 512 bytes.
  CHECK(Contains(report, "KV cache fp8    3152 bytes a token"));
  CHECK(Contains(report, "KV cache bf16   5632 bytes a token"));
  CHECK(Contains(report, "KV cache f32    11264 bytes a token"));
  CHECK(Contains(report, "end ids         1\n"));
  CHECK(Contains(
      report,
      "sampling        temperature 1, top_p 0.95, min_p 0, top_k 0, repetition_penalty 1\n"));
  CHECK(Contains(report, "problems        none\n"));
  // 16 experts in 3 layers, each 3 projections of 256 x 128 with 2 scales.
  CHECK(Contains(report, "routed experts       288        4.72 M       4.72 MB\n"));
}

TEST_CASE("A dense model has no selection and half the cache regions", "[model][inspect]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.architecture = Architecture::kDeepseekV3;
  options.type = CheckpointType::kBf16;
  options.mtp_layers = 1;
  MustWrite(options, folder.path());
  const std::string report = InspectCheckpoint(folder.path()).value();
  INFO(report);
  CHECK(Contains(report, "selection       none: dense attention\n"));
  CHECK(Contains(report, "KV cache bf16   2304 bytes a token"));
  CHECK(Contains(report, "(default)"));
  CHECK(Contains(report, "1 MTP layers left aside"));
}

TEST_CASE("Odd scales are a problem, broken ones an error", "[model][inspect]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.scale_format = ScaleFormat::kPlain;
  MustWrite(options, folder.path());
  CHECK(Contains(InspectCheckpoint(folder.path()).value(), "problems        none\n"));
  testing::EditJson(folder / "config.json",
                    [](auto& json) { json["quantization_config"]["scale_fmt"] = "ue8m0"; });
  CHECK(Contains(InspectCheckpoint(folder.path()).value(), "weight scales are not powers of two"));
  const std::string path = folder / "model-00001-of-00002.safetensors";
  auto shard = testing::ReadShard(path);
  for (const auto& [name, entry] : shard.header.items()) {
    if (name.ends_with("_scale_inv")) {
      shard.data[entry["data_offsets"][0].get<std::size_t>() + 3] = '\x80';  // negative
    }
  }
  testing::WriteShard(path, shard);
  const auto broken = InspectCheckpoint(folder.path());
  REQUIRE_FALSE(broken.ok());
  CHECK(ExitCode(broken.error()) == 2);
  CHECK(testing::IsOneLine(broken.error().message));
  CHECK(Contains(broken.error().message, "not finite and positive"));
}

TEST_CASE("Ignored keys are shown", "[model][inspect]") {
  const TemporaryFolder folder;
  RandomCheckpointOptions options = SmallOptions();
  options.vocabulary = 512;
  MustWrite(options, folder.path());
  testing::EditJson(folder / "config.json", [](auto& json) { json["new_thing"] = 1; });
  const std::string report = InspectCheckpoint(folder.path()).value();
  CHECK(Contains(report, "keys ignored    new_thing\n"));
}

}  // namespace dsa
