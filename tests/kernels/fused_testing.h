// Operands of every fused op, for the tests that hold overrides to their default bodies: a layer of
// any extents, rows past top-k, caches of any format, and outputs and work memory poisoned, so that
// a value that an override does not write is seen.
#pragma once

#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/override_check.h"
#include "tests/kernels/paged_cache.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace dsa::testing {

struct LayerSizes {
  std::int64_t hidden;
  std::int64_t query_latent;
  std::int64_t heads;
  std::int64_t nope;
  std::int64_t value;
  std::int64_t inner;
  std::int64_t index_heads;
  std::int64_t top_k;    // below `context`
  std::int64_t context;  // keys in the cache of each of two sequences
  std::int64_t experts;
  std::int64_t experts_per_token;
  std::int64_t score_rows;  // that SelectKeys scores at a time
  std::int64_t rows;        // of two sequences; in groups of `group`
  std::int64_t group;
  std::int64_t ranks = 1;  // the gate chooses among the experts of so many; ours are not the first
};

inline constexpr LayerSizes kSmallLayer{
    .hidden = 256,
    .query_latent = 128,
    .heads = 2,
    .nope = 24,
    .value = 128,
    .inner = 128,
    .index_heads = 4,
    .top_k = 16,
    .context = 128,
    .experts = 4,
    .experts_per_token = 2,
    .score_rows = 3,
    .rows = 6,
    .group = 2,
};
// DeepSeek-V3.2's, with the experts of one of 32 ranks.
inline constexpr LayerSizes kRealLayer{
    .hidden = 7168,
    .query_latent = 1536,
    .heads = 128,
    .nope = 128,
    .value = 128,
    .inner = 2048,
    .index_heads = 64,
    .top_k = 2048,
    .context = 4096,
    .experts = 8,
    .experts_per_token = 8,
    .score_rows = 64,
    .rows = 64,
    .group = 1,
};

// Each call of a method makes operands of their own, the same in each layer of these sizes.
class FusedLayer final {
 public:
  // The activations are f32 with an f32 cache, else bf16.
  FusedLayer(Backend& backend, const LayerSizes& sizes, KvFormat format);

  AddNormParams AddNorm();
  AddNormParams AddNormWithoutResidual();
  ProjectParams Project();
  ProjectParams ProjectAndAbsorb();  // of both queries
  WriteKeysParams WriteKeys();
  WriteKeysParams WriteKeysWithoutIndexer();
  SelectKeysParams SelectKeys();
  SelectKeysParams SelectKeysAndAbsorb();
  AttendLatentParams AttendLatent();          // of all visible keys
  AttendLatentParams AttendLatentSelected();  // of top_k of them
  AttendLatentParams AttendLatentFp8();       // so, with fp8 values where the cache is fp8
  AttendLatentParams AttendAbsorbed();        // the same behind an op that absorbs
  AttendMaskedParams AttendMasked();
  GatedMlpParams GatedMlp();
  ExpertMlpParams ExpertMlp();

 private:
  AttendParams Attend();
  KeySelection Selection();
  AnyMatrix Random(std::int64_t cols);
  AnyMatrix Filled(DataType type, std::int64_t rows, std::int64_t cols, float mean,
                   float deviation);
  AnyMatrix Poisoned(DataType type, std::int64_t cols);
  Matrix<float> Scales(std::int64_t rows, std::int64_t cols, std::int64_t inputs);
  Vector<const float> Floats(std::int64_t size);
  template <typename T>
  Matrix<T> PoisonedIntegers(std::int64_t cols);
  Activation WithFp8(const AnyMatrix& x);
  Activation Quantized(std::int64_t cols);
  LinearWeight Weight(std::int64_t outputs, std::int64_t inputs);
  LinearWeight Fp8Weight(std::int64_t outputs, std::int64_t inputs);
  ConstAnyTensor3 HeadWeight(std::int64_t rows);
  ScaledHeads Fp8HeadWeight(std::int64_t rows);
  StackedWeight Stack(std::int64_t outputs, std::int64_t inputs);
  LatentCacheView Latents() const;
  IndexerCacheView Keys() const;

  Backend& backend_;
  LayerSizes sizes_;
  KvFormat format_;
  DataType type_;
  RowList rows_;
  PagedLayout layout_;
  DeviceRows device_rows_;
  RopeTables rope_;
  std::optional<DeviceArray<std::uint8_t>> latents_;
  std::optional<DeviceArray<std::uint8_t>> keys_;
  std::optional<DeviceArray<std::int64_t>> slots_;
  std::vector<std::unique_ptr<DeviceTensor>> tensors_;
  std::vector<std::unique_ptr<DeviceArray<std::uint8_t>>> integers_;
  std::vector<DeviceBuffer> filled_;
  std::uint32_t seed_ = 100;
};

// Every op once on operands of `layer`, those with a variant twice; but AttendMasked, whose scratch
// is for fewer keys.
void RunFusedOps(Backend& backend, FusedLayer& layer);

// The largest difference between an override of TestBackend() and its default body that the order
// of a sum can cause; bytes that must be equal have none.
double OverrideTolerance(const OverrideDifference& difference);
// What a planted fault exceeds.
inline constexpr double kOverrideFault = 0.05;
// Fails the test for each difference above its tolerance.
void CheckDifferences(const OverrideCheck& check);

}  // namespace dsa::testing
