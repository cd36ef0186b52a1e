// The golden files of tests/fixtures/goldens (see make_goldens.py there) and the checkpoints they
// belong to, which are written anew from their seeds.
#pragma once

#include "model/checkpoint.h"
#include "model/random_checkpoint.h"
#include "model/weight_loader.h"
#include "tests/model/sequence_runner.h"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dsa::testing {

struct GoldenArray {
  std::vector<std::int64_t> shape;
  std::vector<float> values;

  std::int64_t rows() const { return shape.front(); }
  std::int64_t row_size() const { return static_cast<std::int64_t>(values.size()) / shape.front(); }
  const float* Row(std::int64_t row) const { return values.data() + row * row_size(); }
};

struct GoldenCase {
  std::string name;
  RandomCheckpointOptions options;
  std::string sha256;  // of the checkpoint's shards, in order of name
  std::vector<std::int32_t> ids;
  std::optional<int> trace_layer;

  bool full_precision() const { return options.type == CheckpointType::kF32; }
};

const std::vector<GoldenCase>& GoldenCases();
const GoldenCase& FindGoldenCase(const std::string& name);
std::map<std::string, GoldenArray> LoadGolden(const std::string& name);

// Writes the checkpoint of `options` into a fresh temporary folder, once a process; returns it.
const std::string& CheckpointFolder(const std::string& name,
                                    const RandomCheckpointOptions& options);

// SHA-256 in hexadecimal over the checkpoint's *.safetensors in order of name.
std::string DigestCheckpoint(const std::string& folder);

// A checkpoint in the memory of a backend; config and weights may be changed to plant faults.
struct TestModel {
  explicit TestModel(const std::string& folder, Backend& backend);

  ModelConfig config;
  DeviceWeights device;
  ModelWeights& weights() { return device.weights; }
  LoadedModel loaded() const { return {.config = config, .weights = device.weights}; }
};

// How far the logits of all positions lie from the golden ones.
struct LogitsError {
  double all;     // ||got - golden|| / ||golden|| over all positions
  double below;   // over positions below index_topk; over all without DSA
  double argmax;  // share of positions with equal argmax among those whose golden top-2 margin
                  // exceeds 0.1; 1 where there are none
};
LogitsError CompareLogits(const GoldenCase& golden_case, const GoldenArray& golden,
                          const std::map<std::int64_t, std::vector<float>>& logits);

// What a single case is held to; one line for each bound that is broken.
std::vector<std::string> CheckLogits(const GoldenCase& golden_case, const LogitsError& error);

}  // namespace dsa::testing
