// The CUDA backend's overrides: at DeepSeek-V3.2's extents, beside which kernels they queue.  An
// override that shared its kernels with its default body would be compared with itself; one whose
// kernels may be left out unseen would not be compared at all.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "tests/kernels/fused_testing.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::FusedLayer;
using testing::kRealLayer;
using testing::kSmallLayer;

// A fused op, with the plain ops' kernels that its override queues beside its own.
struct FusedOp {
  std::string op;
  // Makes operands; the result calls the op on them.
  std::function<std::function<void(Backend&)>(FusedLayer&)> make;
  std::vector<std::string> shared;  // parts of their names

  bool Shares(const std::string& kernel) const {
    return std::any_of(shared.begin(), shared.end(), [&](const std::string& part) {
      return kernel.find(part) != std::string::npos;
    });
  }
};

template <typename Params>
FusedOp Op(const std::string& name, void (Backend::*method)(const Params&),
           Params (FusedLayer::*operands)(), std::vector<std::string> shared) {
  return {.op = name,
          .make =
              [method, operands](FusedLayer& layer) {
                return [method, params = (layer.*operands)()](Backend& backend) {
                  (backend.*method)(params);
                };
              },
          .shared = std::move(shared)};
}

std::vector<FusedOp> Overrides() {
  return {
      Op("AddNorm", &Backend::AddNorm, &FusedLayer::AddNorm, {}),
      // The plain product's kernel, which takes several weights at once, and a library's for bf16.
      Op("Project", &Backend::Project, &FusedLayer::Project,
         {"SmallProduct", "NarrowProduct", "LinearKernel", "of a library"}),
      Op("WriteKeys", &Backend::WriteKeys, &FusedLayer::WriteKeys, {}),
      Op("SelectKeys", &Backend::SelectKeys, &FusedLayer::SelectKeys, {}),
      Op("SelectKeys", &Backend::SelectKeys, &FusedLayer::SelectKeysAndAbsorb, {}),
      Op("AttendLatent", &Backend::AttendLatent, &FusedLayer::AttendLatentSelected,
         {"Attention", "JoinParts"}),
      // The plain op's kernel, which makes the copy too where it is given one.
      Op("AttendLatent", &Backend::AttendLatent, &FusedLayer::AttendLatentFp8,
         {"Attention", "JoinParts", "ExpandFp8"}),
      Op("GatedMlp", &Backend::GatedMlp, &FusedLayer::GatedMlp, {"SmallProduct"}),
      // The gate's launch sorts as well; its choice is the plain op's.
      Op("ExpertMlp", &Backend::ExpertMlp, &FusedLayer::ExpertMlp,
         {"FewGate", "SmallProduct", "ResidentExperts"}),
  };
}
// Fused ops that have no override yet.
std::vector<FusedOp> Defaults() {
  return {
      Op("AttendMasked", &Backend::AttendMasked, &FusedLayer::AttendMasked, {}),
  };
}

// Plain ops of the test backend, fused ones by their default bodies.
class DefaultBodies final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
};

cudaStream_t Stream() {
  return dynamic_cast<CudaBackend&>(testing::TestBackend()).stream();
}

// What `body` queues, as a graph; destroy it.
cudaGraph_t Captured(const std::function<void()>& body) {
  testing::TestBackend().Synchronize();
  cudaGraph_t graph = nullptr;
  DSA_CUDA_CHECK(cudaStreamBeginCapture(Stream(), cudaStreamCaptureModeThreadLocal));
  body();
  DSA_CUDA_CHECK(cudaStreamEndCapture(Stream(), &graph));
  return graph;
}

std::vector<cudaGraphNode_t> KernelNodes(cudaGraph_t graph) {
  std::size_t count = 0;
  DSA_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  DSA_CUDA_CHECK(cudaGraphGetNodes(graph, nodes.data(), &count));
  std::erase_if(nodes, [](cudaGraphNode_t node) {
    cudaGraphNodeType type{};
    DSA_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
    return type != cudaGraphNodeTypeKernel;
  });
  return nodes;
}

std::string KernelName(cudaGraphNode_t node) {
  cudaKernelNodeParams params{};
  const char* name = nullptr;
  if (cudaGraphKernelNodeGetParams(node, &params) != cudaSuccess ||
      cudaFuncGetName(&name, params.func) != cudaSuccess) {
    (void)cudaGetLastError();
    return "of a library";
  }
  return name;
}

std::vector<std::string> KernelsOf(const std::function<void()>& body) {
  const cudaGraph_t graph = Captured(body);
  std::vector<std::string> names;
  for (const cudaGraphNode_t node : KernelNodes(graph)) {
    names.push_back(KernelName(node));
  }
  DSA_CUDA_CHECK(cudaGraphDestroy(graph));
  return names;
}

struct Kernels {
  std::vector<std::string> of_override, of_default;

  bool has_own(const FusedOp& op) const {
    return !std::all_of(of_override.begin(), of_override.end(),
                        [&](const std::string& kernel) { return op.Shares(kernel); });
  }
};
Kernels KernelsOf(const FusedOp& op) {
  FusedLayer layer(testing::TestBackend(), kSmallLayer, KvFormat::kFp8);
  DefaultBodies defaults(testing::TestBackend());
  const std::function<void(Backend&)> run = op.make(layer);
  // Once before: products are planned.
  run(testing::TestBackend());
  run(defaults);
  return {.of_override = KernelsOf([&] { run(testing::TestBackend()); }),
          .of_default = KernelsOf([&] { run(defaults); })};
}

// Leaves out one kernel of each call of a fused op.
class ForgetfulOverrides final : public ForwardingBackend {
 public:
  ForgetfulOverrides(Backend& inner, std::size_t forgotten)
      : ForwardingBackend(inner), forgotten_(forgotten) {}

  void AddNorm(const AddNormParams& params) override {
    Run([&] { inner_.AddNorm(params); });
  }
  void Project(const ProjectParams& params) override {
    Run([&] { inner_.Project(params); });
  }
  void WriteKeys(const WriteKeysParams& params) override {
    Run([&] { inner_.WriteKeys(params); });
  }
  void SelectKeys(const SelectKeysParams& params) override {
    Run([&] { inner_.SelectKeys(params); });
  }
  void AttendLatent(const AttendLatentParams& params) override {
    Run([&] { inner_.AttendLatent(params); });
  }
  void AttendMasked(const AttendMaskedParams& params) override {
    Run([&] { inner_.AttendMasked(params); });
  }
  void GatedMlp(const GatedMlpParams& params) override {
    Run([&] { inner_.GatedMlp(params); });
  }
  void ExpertMlp(const ExpertMlpParams& params) override {
    Run([&] { inner_.ExpertMlp(params); });
  }

 private:
  void Run(const std::function<void()>& body) const {
    const cudaGraph_t graph = Captured(body);
    cudaGraphExec_t executable = nullptr;
    DSA_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    DSA_CUDA_CHECK(cudaGraphNodeSetEnabled(executable, KernelNodes(graph).at(forgotten_), 0));
    DSA_CUDA_CHECK(cudaGraphLaunch(executable, Stream()));
    DSA_CUDA_CHECK(cudaStreamSynchronize(Stream()));
    DSA_CUDA_CHECK(cudaGraphExecDestroy(executable));
    DSA_CUDA_CHECK(cudaGraphDestroy(graph));
  }
  std::size_t forgotten_;
};

// What fused ops leave, one right behind the other: a launch that rehearses, or reads ahead, does
// so while those before it still run.
class Chain final {
 public:
  explicit Chain(const testing::LayerSizes& sizes)
      : layer_(testing::TestBackend(), sizes, KvFormat::kFp8),
        norm_(layer_.AddNorm()),
        keys_(layer_.WriteKeys()),
        queries_(layer_.ProjectAndAbsorb()),
        experts_{layer_.ExpertMlp(), layer_.ExpertMlp()} {
    queries_.x = keys_.query_latent;
  }

  // `waits`: for the end of each op before the next one is queued.
  void Run(bool waits) {
    Backend& backend = testing::TestBackend();
    const auto wait = [&] {
      if (waits) {
        backend.Synchronize();
      }
    };
    for (int turn = 0; turn < 3; ++turn) {
      for (std::size_t i = 0; i < experts_.size(); ++i) {
        backend.ExpertMlp(experts_[i]);
        wait();
        backend.ExpertMlp(experts_[1 - i]);
        wait();
        backend.AddNorm(norm_);
        wait();
        backend.WriteKeys(keys_);
        wait();
        backend.Project(queries_);
        wait();
        backend.AddNorm(norm_);
        wait();
      }
    }
    backend.Synchronize();
  }

  std::vector<std::vector<std::byte>> Outputs() const {
    std::vector<std::vector<std::byte>> outputs;
    const auto add = [&](const void* data, std::int64_t bytes) {
      outputs.emplace_back(static_cast<std::size_t>(bytes));
      testing::TestBackend().CopyToHost(outputs.back().data(), data, outputs.back().size());
    };
    const auto add_rows = [&](const AnyMatrix& m) {
      REQUIRE(m.row_stride == m.cols);
      add(m.data, m.rows * m.cols * SizeOf(m.type));
    };
    const auto add_activation = [&](const Activation& y) {
      add_rows(y.x);
      const std::int64_t rows = y.x.rows;
      if (y.fp8.values.data != nullptr) {
        add(y.fp8.values.data, rows * y.fp8.values.row_stride);
        add(y.fp8.scales.data, rows * y.fp8.scales.row_stride * std::int64_t{sizeof(float)});
      }
    };
    for (const ExpertMlpParams& experts : experts_) {
      const GateParams& gate = experts.gate;
      add_rows(experts.routed.y);
      add(gate.experts.data, gate.experts.rows * gate.experts.cols * std::int64_t{sizeof(float)});
      add(gate.weights.data, gate.weights.rows * gate.weights.cols * std::int64_t{sizeof(float)});
      add(gate.expert_pairs.data, gate.expert_pairs.size * std::int64_t{sizeof(std::int32_t)});
    }
    add_rows(norm_.residual);
    add_activation(norm_.y);
    add_activation(keys_.query_latent);
    add_rows(queries_.projections[0].y);
    add_rows(queries_.projections[1].y);
    const AnyTensor3& latent = queries_.absorbed->queries.q_latent;
    add(latent.data, latent.rows * latent.row_stride * SizeOf(latent.type));
    testing::TestBackend().Synchronize();
    return outputs;
  }

 private:
  FusedLayer layer_;
  AddNormParams norm_;
  WriteKeysParams keys_;
  ProjectParams queries_;
  std::vector<ExpertMlpParams> experts_;
};

}  // namespace

TEST_CASE("overrides agree with the default bodies at the real model's extents",
          "[kernels][fused][real_sizes]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16);
  testing::LayerSizes sizes = kRealLayer;
  sizes.rows = GENERATE(as<std::int64_t>(), 1, 7, 16, 17, 40, 64);
  CAPTURE(testing::Name(format), sizes.rows);
  OverrideCheck check(testing::TestBackend());
  FusedLayer layer(testing::TestBackend(), sizes, format);
  testing::RunFusedOps(check, layer);
  sizes.context = testing::kTestLimits.masked_context_max;
  sizes.top_k = sizes.context / 2;
  FusedLayer masked(testing::TestBackend(), sizes, format);
  check.AttendMasked(masked.AttendMasked());
  testing::CheckDifferences(check);
}

// Queries of few heads are absorbed beside the selection, of many beside the scores or the
// indexer's queries.
TEST_CASE("SelectKeys absorbs the queries of 128 heads in three launches", "[kernels][fused]") {
  testing::LayerSizes sizes = kSmallLayer;
  sizes.heads = kRealLayer.heads;
  sizes.group = 1;
  sizes.rows = GENERATE(as<std::int64_t>(), 1, 8, 9, 16, 17, 32, 33, 57, 64, 70);
  sizes.score_rows = sizes.rows;
  sizes.index_heads = GENERATE(as<std::int64_t>(), 4, 64);  // of so many only beside the scores
  CAPTURE(sizes.rows, sizes.index_heads);
  OverrideCheck check(testing::TestBackend());
  FusedLayer layer(testing::TestBackend(), sizes, KvFormat::kFp8);
  check.SelectKeys(layer.SelectKeysAndAbsorb());
  testing::CheckDifferences(check);
  const SelectKeysParams again = layer.SelectKeysAndAbsorb();
  CHECK(KernelsOf([&] { testing::TestBackend().SelectKeys(again); }).size() == 3);
}

// In the launch of their products, of 33 to 64 rows.
TEST_CASE("Project absorbs the queries of 128 heads in one launch", "[kernels][fused]") {
  testing::LayerSizes sizes = kSmallLayer;
  sizes.query_latent = kRealLayer.query_latent;
  sizes.nope = kRealLayer.nope;
  sizes.heads = kRealLayer.heads;
  sizes.index_heads = kRealLayer.index_heads;
  sizes.group = 1;
  sizes.rows = GENERATE(as<std::int64_t>(), 32, 33, 64, 65);
  CAPTURE(sizes.rows);
  Backend& backend = testing::TestBackend();
  FusedLayer layer(backend, sizes, KvFormat::kFp8);
  const ProjectParams params = layer.ProjectAndAbsorb();
  CHECK(backend.AbsorbsInProject(params) == (sizes.rows > 32 && sizes.rows <= 64));
  if (sizes.rows > 64) {
    return;
  }
  OverrideCheck check(backend);
  check.Project(params);
  CHECK(check.Differences().size() == 3);
  for (const OverrideDifference& difference : check.Differences()) {
    CAPTURE(difference.output, difference.relative_error);
    // The products and the rotation bit by bit: neither splits K.
    const bool is_absorbed = difference.output == "q_latent";
    CHECK(difference.relative_error <=
          (is_absorbed ? testing::OverrideTolerance(difference) : 0.0));
    if (is_absorbed && difference.relative_error > 0.0) {
      WARN("q_latent of " << sizes.rows << " rows: " << difference.relative_error);
    }
  }
  CHECK(KernelsOf([&] { backend.Project(params); }).size() == 1);
  backend.PlanAttention({}, sizes.heads, true);
  CHECK_FALSE(backend.AbsorbsInProject(params));
  backend.PlanAttention({}, sizes.heads, false);
  // Others are absorbed, but not asked for.
  const auto is_asked_for = [&](const std::function<void(ProjectParams&)>& change) {
    ProjectParams other = params;
    change(other);
    return backend.AbsorbsInProject(other);
  };
  CHECK_FALSE(is_asked_for([](ProjectParams& other) { other.absorbed.reset(); }));
  CHECK_FALSE(is_asked_for([](ProjectParams& other) { other.projections[1] = {}; }));
  CHECK_FALSE(is_asked_for(
      [](ProjectParams& other) { other.absorbed->queries.layout = RopeLayout::kHalfSplit; }));
}

TEST_CASE("an op right behind others leaves what it leaves alone", "[kernels][fused][real_sizes]") {
  testing::LayerSizes sizes = GENERATE(kSmallLayer, kRealLayer);
  sizes.group = 1;
  sizes.rows = GENERATE(as<std::int64_t>(), 1, 16, 17, 64);
  CAPTURE(sizes.hidden, sizes.rows);
  Chain alone(sizes);
  alone.Run(true);
  Chain chained(sizes);
  chained.Run(false);
  const auto expected = alone.Outputs();
  const auto outputs = chained.Outputs();
  REQUIRE(outputs.size() == expected.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    CAPTURE(i);
    CHECK(outputs[i] == expected[i]);
  }
}

TEST_CASE("an override is not compared with itself", "[kernels][fused]") {
  for (const FusedOp& op : Overrides()) {
    CAPTURE(op.op);
    const Kernels kernels = KernelsOf(op);
    for (const std::string& kernel : kernels.of_override) {
      CAPTURE(kernel);
      CHECK((op.Shares(kernel) ||
             std::count(kernels.of_default.begin(), kernels.of_default.end(), kernel) == 0));
    }
    CHECK((kernels.has_own(op) || kernels.of_override.size() < kernels.of_default.size()));
  }
  for (const FusedOp& op : Defaults()) {
    CAPTURE(op.op);  // here although it has an override?
    const Kernels kernels = KernelsOf(op);
    CHECK(kernels.of_override == kernels.of_default);
  }
}

TEST_CASE("a kernel that an override leaves out is named", "[kernels][fused]") {
  for (const FusedOp& op : Overrides()) {
    const Kernels kernels = KernelsOf(op);
    for (std::size_t forgotten = 0; forgotten < kernels.of_override.size(); ++forgotten) {
      if (kernels.has_own(op) && op.Shares(kernels.of_override[forgotten])) {
        continue;  // what a plain op left in scratch may still be there
      }
      CAPTURE(op.op, kernels.of_override[forgotten]);
      FusedLayer layer(testing::TestBackend(), kSmallLayer, KvFormat::kFp8);
      ForgetfulOverrides forgetful(testing::TestBackend(), forgotten);
      OverrideCheck check(forgetful);
      op.make(layer)(check);
      const auto faults = check.Faults(testing::kOverrideFault);
      CHECK(std::any_of(faults.begin(), faults.end(), [&](const OverrideDifference& difference) {
        return difference.op == op.op;
      }));
    }
  }
}

}  // namespace dsa
