// The fused ops: OverrideCheck holds an override to its default body, at extents and for caches of
// every kind; a fault planted in any output of any op is named.
#include "tests/kernels/fused_testing.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::fused_test {
namespace {

using testing::FusedLayer;
using testing::kSmallLayer;

// Damages one output of one op behind it.
class FaultyOps final : public ForwardingBackend {
 public:
  FaultyOps(Backend& inner, std::string fault)
      : ForwardingBackend(inner), fault_(std::move(fault)) {}

  void AddNorm(const AddNormParams& params) override {
    inner_.AddNorm(params);
    At("AddNorm y", params.y.x);
    if (params.residual.data != nullptr) {
      At("AddNorm residual", params.residual);
    }
    AtActivation("AddNorm", params.y);
  }
  void Project(const ProjectParams& params) override {
    inner_.Project(params);
    At("Project y[0]", params.projections[0].y);
    At("Project y[2]", params.projections[2].y);
    if (params.absorbed && fault_ == "Project q_latent") {
      const AnyTensor3& latent = params.absorbed->queries.q_latent;
      Flip(latent.data, SizeOf(latent.type), 512);
    }
  }
  void WriteKeys(const WriteKeysParams& params) override {
    inner_.WriteKeys(params);
    At("WriteKeys query latent", params.query_latent.x);
    AtActivation("WriteKeys", params.query_latent);
    std::int64_t slot = 0;
    inner_.CopyToHost(&slot, params.latent.slots.data + 4, sizeof(slot));
    inner_.Synchronize();
    const std::int64_t block = slot / 64;
    const auto token = static_cast<int>(slot % 64);
    std::uint8_t* const latent = params.latent.cache.data + block * LatentBlock::kBytes;
    if (fault_ == "WriteKeys latent") {
      Flip(latent + LatentBlock::Values(token), 1, 512);
    }
    if (fault_ == "WriteKeys RoPE key") {
      Flip(latent + LatentBlock::Rope(token), 2, 64);
    }
    if (fault_ == "WriteKeys indexer key scale" && params.indexer_key) {
      Flip(params.indexer_key->cache.data + block * IndexerBlock::kBytes +
               IndexerBlock::Scale(token),
           4, 1);
    }
  }
  void SelectKeys(const SelectKeysParams& params) override {
    inner_.SelectKeys(params);
    if (fault_ == "SelectKeys slots") {
      Flip(params.slots.data + 5, 1, 1);
    }
    if (fault_ == "SelectKeys mask") {
      Flip(params.mask.data, 1, 1);
    }
    if (fault_ == "SelectKeys counts") {
      Flip(params.counts.data, 1, 1);
    }
    if (params.absorbed) {
      if (fault_ == "SelectKeys q") {
        const AnyTensor3& q = params.absorbed->q;
        Flip(static_cast<std::uint8_t*>(q.data) + (q.cols - 1) * SizeOf(q.type), SizeOf(q.type), 1);
      }
      if (fault_ == "SelectKeys q_latent") {
        const AnyTensor3& latent = params.absorbed->q_latent;
        Flip(latent.data, SizeOf(latent.type), 512);
      }
    }
  }
  void AttendLatent(const AttendLatentParams& params) override {
    inner_.AttendLatent(params);
    At("AttendLatent o", params.attend.o.x);
    AtActivation("AttendLatent", params.attend.o);
  }
  void AttendMasked(const AttendMaskedParams& params) override {
    inner_.AttendMasked(params);
    At("AttendMasked o", params.attend.o.x);
  }
  void GatedMlp(const GatedMlpParams& params) override {
    inner_.GatedMlp(params);
    At("GatedMlp y", params.y);
  }
  void ExpertMlp(const ExpertMlpParams& params) override {
    inner_.ExpertMlp(params);
    At("ExpertMlp y", params.routed.y);
    if (fault_ == "ExpertMlp experts") {
      Flip(params.gate.experts.data, 1, 1);
    }
    if (fault_ == "ExpertMlp pairs") {
      Flip(params.gate.expert_pairs.data, 1, 1);
    }
  }

 private:
  // Changes the highest bit, a float's sign, of `count` values of `bytes` bytes each.
  void Flip(void* values, std::size_t bytes, std::size_t count) {
    std::vector<std::uint8_t> host(bytes * count);
    inner_.CopyToHost(host.data(), values, host.size());
    inner_.Synchronize();
    for (std::size_t i = bytes - 1; i < host.size(); i += bytes) {
      host[i] = static_cast<std::uint8_t>(host[i] ^ 0x80U);
    }
    inner_.CopyToDevice(values, host.data(), host.size());
  }
  // Of the first row.
  void At(const std::string& name, const AnyMatrix& matrix) {
    if (fault_ == name) {
      Flip(matrix.data, static_cast<std::size_t>(SizeOf(matrix.type)),
           static_cast<std::size_t>(matrix.cols));
    }
  }
  void AtActivation(const std::string& op, const Activation& activation) {
    const QuantizedView& fp8 = activation.fp8;
    if (fp8.values.data == nullptr) {
      return;
    }
    if (fault_ == op + " fp8 copy") {
      Flip(fp8.values.data, 1, static_cast<std::size_t>(fp8.values.cols));
    }
    if (fault_ == op + " fp8 scales") {
      Flip(fp8.scales.data, 4, static_cast<std::size_t>(fp8.scales.cols));
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

void RunSmall(Backend& backend, KvFormat format, std::int64_t value) {
  testing::LayerSizes sizes = kSmallLayer;
  sizes.value = value;
  FusedLayer layer(testing::TestBackend(), sizes, format);
  testing::RunFusedOps(backend, layer);
  backend.AttendMasked(layer.AttendMasked());
}

}  // namespace

TEST_CASE("overrides agree with the default bodies", "[kernels][fused]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto value = GENERATE(as<std::int64_t>(), 128, 72);  // a head's: a block of scales, or not
  CAPTURE(testing::Name(format), value);
  OverrideCheck check(testing::TestBackend());
  RunSmall(check, format, value);
  testing::CheckDifferences(check);
}

TEST_CASE("the override check reads every output of every op", "[kernels][fused]") {
  OverrideCheck check(testing::TestBackend());
  RunSmall(check, KvFormat::kFp8, kSmallLayer.value);
  const std::vector<std::string> outputs = {"AddNorm fp8 copy",
                                            "AddNorm fp8 scales",
                                            "AddNorm residual",
                                            "AddNorm y",
                                            "AttendLatent fp8 copy",
                                            "AttendLatent fp8 scales",
                                            "AttendLatent o",
                                            "AttendLatent q",
                                            "AttendMasked fp8 copy",
                                            "AttendMasked fp8 scales",
                                            "AttendMasked o",
                                            "AttendMasked q",
                                            "ExpertMlp experts",
                                            "ExpertMlp pairs",
                                            "ExpertMlp weights",
                                            "ExpertMlp y",
                                            "GatedMlp y",
                                            "Project q_latent",
                                            "Project y[0]",
                                            "Project y[1]",
                                            "Project y[2]",
                                            "SelectKeys counts",
                                            "SelectKeys faults",
                                            "SelectKeys mask",
                                            "SelectKeys q",
                                            "SelectKeys q_latent",
                                            "SelectKeys slots",
                                            "WriteKeys RoPE key",
                                            "WriteKeys fp8 copy",
                                            "WriteKeys fp8 scales",
                                            "WriteKeys indexer key",
                                            "WriteKeys indexer key scale",
                                            "WriteKeys latent",
                                            "WriteKeys latent scales",
                                            "WriteKeys query latent"};
  CHECK(Names(check.Differences()) == outputs);
}

TEST_CASE("a fault in an output of a fused op is named", "[kernels][fused]") {
  const std::string fault = GENERATE(
      as<std::string>(), "AddNorm y", "AddNorm residual", "AddNorm fp8 copy", "AddNorm fp8 scales",
      "Project y[0]", "Project y[2]", "Project q_latent", "WriteKeys query latent",
      "WriteKeys fp8 copy", "WriteKeys latent", "WriteKeys RoPE key", "WriteKeys indexer key scale",
      "SelectKeys slots", "SelectKeys mask", "SelectKeys counts", "SelectKeys q_latent",
      "AttendLatent o", "AttendLatent fp8 scales", "AttendMasked o", "GatedMlp y", "ExpertMlp y",
      "ExpertMlp experts", "ExpertMlp pairs");
  CAPTURE(fault);
  FaultyOps faulty(testing::TestBackend(), fault);
  OverrideCheck check(faulty);
  RunSmall(check, KvFormat::kFp8, kSmallLayer.value);
  CHECK(Names(check.Faults(testing::kOverrideFault)) == std::vector<std::string>{fault});
}

TEST_CASE("SelectKeys selects the same however many rows are scored at a time",
          "[kernels][fused]") {
  Backend& backend = testing::TestBackend();
  const auto run = [&](std::int64_t score_rows) {
    testing::LayerSizes sizes = kSmallLayer;
    sizes.score_rows = score_rows;
    FusedLayer layer(backend, sizes, KvFormat::kFp8);
    const SelectKeysParams params = layer.SelectKeys();
    backend.SelectKeys(params);
    std::vector<std::int32_t> slots(
        static_cast<std::size_t>(params.slots.rows * params.slots.cols));
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

TEST_CASE("queries absorbed behind their products", "[kernels][fused]") {
  testing::LayerSizes sizes = kSmallLayer;
  sizes.group = 1;
  sizes.nope = 128;
  sizes.heads = 6;
  sizes.index_heads = 3;  // an indexer's tile of 64 outputs for each head
  sizes.rows = GENERATE(as<std::int64_t>(), 64, 33, 2);
  sizes.query_latent = GENERATE(as<std::int64_t>(), 128, 640);
  CAPTURE(sizes.rows, sizes.query_latent);
  FusedLayer layer(testing::TestBackend(), sizes, KvFormat::kFp8);
  OverrideCheck check(testing::TestBackend());
  check.Project(layer.ProjectAndAbsorb());
  CHECK(check.Differences().size() == 3);
  testing::CheckDifferences(check);
}

}  // namespace dsa::fused_test
