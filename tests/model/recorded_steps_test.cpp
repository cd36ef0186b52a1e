// Steps as the device sees them: what is sent and fetched, and decoding steps that run by Record
// and Replay on padded rows, bit by bit as steps that are queued anew.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/gather_rows.h"
#include "kernels/ops/store_latent.h"
#include "tests/model/golden.h"
#include "tests/model/sequence_runner.h"

#include <cstring>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

constexpr std::int32_t kBlocks = 64;
constexpr std::int64_t kSequences = 7;

// Counts what crosses between host and device.
class CountingBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  std::int64_t uploads = 0;
  std::int64_t downloads = 0;
  std::int64_t waits = 0;
  std::int64_t replays = 0;
  std::int64_t records = 0;
  std::int64_t others = 0;  // copies that are no step's, and waits for everything
  // Steps whose rows are said to be a prompt's: recorded, and queued.
  std::int64_t records_of_runs = 0;
  std::int64_t runs = 0;

  void PlanAttention(const PagedRows& rows, std::int64_t heads, bool batch_invariant) override {
    (is_recording_ ? records_of_runs : runs) += rows.has_runs ? 1 : 0;
    inner_.PlanAttention(rows, heads, batch_invariant);
  }
  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override {
    ++uploads;
    inner_.Upload(target, source, offset, bytes);
  }
  void Download(const HostBuffer& target, std::size_t offset, const void* source,
                std::size_t bytes) override {
    ++downloads;
    inner_.Download(target, offset, source, bytes);
  }
  void WaitFor(int event) override {
    ++waits;
    inner_.WaitFor(event);
  }
  void Replay(GraphId graph) override {
    ++replays;
    inner_.Replay(graph);
  }
  void Record(GraphId graph, const std::function<void()>& body) override {
    ++records;
    is_recording_ = true;
    inner_.Record(graph, body);
    is_recording_ = false;
  }
  void CopyToDevice(void* target, const void* source, std::size_t bytes) override {
    ++others;
    inner_.CopyToDevice(target, source, bytes);
  }
  void CopyToHost(void* target, const void* source, std::size_t bytes) override {
    ++others;
    inner_.CopyToHost(target, source, bytes);
  }
  void Synchronize() override {
    ++others;
    inner_.Synchronize();
  }

 private:
  bool is_recording_ = false;
};

// Overwrites all that the host holds of a step before what was recorded is repeated, and fills the
// block of padding with NaN before every step.
class ForgetfulBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  const ForwardBatch* batch = nullptr;
  const KvArena* arena = nullptr;
  std::int64_t replays = 0;

  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override {
    inner_.Upload(target, source, offset, bytes);
    std::memset(source.data(), 0xFF, source.bytes());
    for (int layer = 0; layer < arena->extents().layers; ++layer) {
      PoisonPadding(arena->Latent(layer).data, LatentTokenBytes(arena->extents().format));
      if (layer < arena->extents().indexer_layers) {
        PoisonPadding(arena->Indexer(layer).data, IndexerTokenBytes(arena->extents().format));
      }
    }
  }
  void Replay(GraphId graph) override {
    ++replays;
    std::memset(const_cast<std::uint8_t*>(batch->packed.data()), 0xFF, batch->packed.size());
    inner_.Replay(graph);
  }

 private:
  static void PoisonPadding(std::uint8_t* region, std::int64_t token_bytes) {
    const std::int64_t block_bytes = kTokensPerBlock * token_bytes;
    std::memset(region + kBlocks * block_bytes, 0xFF, static_cast<std::size_t>(block_bytes));
  }
};

// What a body may take from the host by mistake: each is right when the step is recorded.
enum class HostRead { kNone, kRowCount, kSpan, kPosition };

class HostReadingBackend final : public ForwardingBackend {
 public:
  HostReadingBackend(Backend& inner, HostRead read) : ForwardingBackend(inner), read_(read) {}

  const ForwardBatch* batch = nullptr;

  void Embed(const EmbedParams& params) override {
    EmbedParams changed = params;
    if (read_ == HostRead::kSpan && batch->recorded) {
      // Host and device share memory here; a copy stands for memory that the host reuses.
      copies_.emplace_back(batch->token_ids.begin(), batch->token_ids.end());
      changed.ids.data = copies_.back().data();
    }
    inner_.Embed(changed);
  }
  void GatherRows(const GatherRowsParams& params) override {
    GatherRowsParams changed = params;
    if (read_ == HostRead::kRowCount && batch->recorded) {
      changed.rows.size = batch->samples;
      changed.y.rows = batch->samples;
    }
    inner_.GatherRows(changed);
  }
  void StoreLatent(const StoreLatentParams& params) override {
    StoreLatentParams changed = params;
    if (read_ == HostRead::kPosition && batch->recorded) {
      copies_.emplace_back(batch->positions.begin(), batch->positions.end());
      changed.positions.data = copies_.back().data();
    }
    inner_.StoreLatent(changed);
  }

 private:
  HostRead read_;
  std::vector<std::vector<std::int32_t>> copies_;
};

std::vector<std::int32_t> Prompt(std::int64_t tokens, std::int32_t seed) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] =
        static_cast<std::int32_t>((i * 37 + i * i * 11 + static_cast<std::size_t>(seed)) % 119);
  }
  return ids;
}

// Replies of different lengths, so that the rows of a step shrink to 1; one prompt begins beyond
// top-k, others pass it while they decode.
std::vector<SequenceRequest> Requests(std::int32_t count) {
  std::vector<SequenceRequest> requests;
  for (std::int32_t i = 0; i < count; ++i) {
    requests.push_back(
        {.prompt = Prompt(i == 3 ? 130 : 3 + 2 * i, i + count), .max_tokens = 8 + 5 * i});
  }
  return requests;
}

// First five sequences, then seven: their steps are of the same recordings.
std::vector<SequenceOutput> RunBoth(SequenceRunner& runner) {
  std::vector<SequenceOutput> outputs = runner.Run(Requests(5));
  const std::vector<SequenceOutput> more = runner.Run(Requests(kSequences));
  outputs.insert(outputs.end(), more.begin(), more.end());
  return outputs;
}

RunOptions Options(const TestModel& model, bool recorded) {
  RunOptions options;
  options.kv_format = model.config.default_kv_format();
  options.sequences_max = kSequences;
  options.blocks = kBlocks;
  if (recorded) {
    options.row_buckets = RowBuckets(kSequences, kTokensPerBlock);
  }
  return options;
}

std::vector<SequenceOutput> RunEager(const std::string& name) {
  CpuBackend backend(2);
  const TestModel model(CheckpointFolder(name, FindGoldenCase(name).options), backend);
  SequenceRunner runner(backend, model.loaded(), Options(model, false));
  return RunBoth(runner);
}

}  // namespace

TEST_CASE("a step is one upload, one download and one wait", "[model][step]") {
  const bool recorded = GENERATE(false, true);
  CpuBackend cpu(2);
  CountingBackend backend(cpu);
  const TestModel model(CheckpointFolder("v32_fp8", FindGoldenCase("v32_fp8").options), cpu);
  RunOptions options = Options(model, recorded);
  options.logits = false;
  options.record_at_start = true;
  options.step_tokens_max = 64;  // some steps mix a chunk of a prompt with decoding rows
  SequenceRunner runner(backend, model.loaded(), options);
  const std::int64_t records = backend.records;
  CHECK((records > 0) == recorded);
  std::int64_t steps = 0;
  runner.before_step = [&](const ForwardBatch&) {
    CHECK(backend.uploads == steps);
    CHECK(backend.downloads == steps);
    CHECK(backend.waits == steps);
    ++steps;
    backend.others = 0;
  };
  std::vector<SequenceRequest> requests = Requests(kSequences);
  for (SequenceRequest& request : requests) {
    request.prompt_logits = PromptLogits::kNone;
  }
  const std::vector<SequenceOutput> outputs = runner.Run(requests);
  CHECK(backend.uploads == steps);
  CHECK(backend.downloads == steps);
  CHECK(backend.waits == steps);
  CHECK(backend.others == 0);
  CHECK(backend.records == records);  // a step records nothing
  CHECK(backend.runs > 0);
  CHECK(backend.records_of_runs == 0);
  CHECK(backend.replays == runner.steps_recorded());
  CHECK((backend.replays > 30) == recorded);
  CHECK(outputs[0].ids.size() == 8);
}

TEST_CASE("the shapes of decoding steps can be counted beforehand", "[model][step]") {
  const std::vector<std::int64_t> rows = {1, 2};
  const auto dense = AttentionPath::kDense;
  const auto sparse = AttentionPath::kSparse;
  CHECK(DecodeShapes(rows, 200, 200) ==
        std::vector<StepShape>{DecodeShape(1, dense, 64), DecodeShape(1, dense, 128),
                               DecodeShape(1, dense, 256), DecodeShape(2, dense, 64),
                               DecodeShape(2, dense, 128), DecodeShape(2, dense, 256)});
  CHECK(DecodeShapes(std::vector<std::int64_t>{4}, 300, 100) ==
        std::vector<StepShape>{DecodeShape(4, dense, 64), DecodeShape(4, dense, 128),
                               DecodeShape(4, sparse, 128), DecodeShape(4, sparse, 256),
                               DecodeShape(4, sparse, 320)});
  CHECK(DecodeShapes({}, 300, 100).empty());
}

TEST_CASE("recorded steps on padded rows give the bits of steps queued anew", "[model][step]") {
  const std::string name = GENERATE(as<std::string>(), "v32_f32", "v32_fp8", "glm_bf16", "v3_fp8");
  CpuBackend cpu(2);
  ForgetfulBackend backend(cpu);
  const TestModel model(CheckpointFolder(name, FindGoldenCase(name).options), cpu);
  SequenceRunner runner(backend, model.loaded(), Options(model, true));
  backend.arena = &runner.arena();
  runner.before_step = [&](const ForwardBatch& batch) { backend.batch = &batch; };
  const std::vector<SequenceOutput> outputs = RunBoth(runner);
  CAPTURE(name, backend.replays);
  CHECK(backend.replays == runner.steps_recorded());
  CHECK(backend.replays > 30);
  CHECK(SameBits(outputs, RunEager(name)));
}

TEST_CASE("a body that reads the host is seen when it is repeated", "[model][step]") {
  const HostRead read =
      GENERATE(HostRead::kNone, HostRead::kRowCount, HostRead::kSpan, HostRead::kPosition);
  CpuBackend cpu(2);
  HostReadingBackend backend(cpu, read);
  const TestModel model(CheckpointFolder("v32_fp8", FindGoldenCase("v32_fp8").options), cpu);
  SequenceRunner runner(backend, model.loaded(), Options(model, true));
  runner.before_step = [&](const ForwardBatch& batch) { backend.batch = &batch; };
  const std::vector<SequenceOutput> outputs = RunBoth(runner);
  CAPTURE(static_cast<int>(read));
  CHECK(SameBits(outputs, RunEager("v32_fp8")) == (read == HostRead::kNone));
}

namespace {

// Adds up what steps say of experts, and what their gates chose.
class PairCounts final : public StepExecutor {
 public:
  PairCounts(std::unique_ptr<StepExecutor> inner, std::vector<std::int64_t>& counts)
      : inner_(std::move(inner)), counts_(counts) {}
  void Launch(const ForwardBatch& batch) override { inner_->Launch(batch); }
  const StepResult& Collect() override {
    const StepResult& result = inner_->Collect();
    counts_.resize(result.expert_pairs.size());
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      counts_[i] += result.expert_pairs[i];
    }
    return result;
  }

 private:
  std::unique_ptr<StepExecutor> inner_;
  std::vector<std::int64_t>& counts_;
};

// Gates of the model in turn, for steps that are queued as they come.
class GateWatch final : public ForwardingBackend {
 public:
  GateWatch(Backend& inner, const ModelConfig& config)
      : ForwardingBackend(inner),
        layers_(config.layers - config.dense_layers),
        experts_(config.experts),
        chosen(static_cast<std::size_t>(layers_ * experts_)) {}
  void Gate(const GateParams& params) override {
    inner_.Gate(params);
    const std::int64_t layer = gates_++ % layers_;
    for (std::int64_t row = 0; row < params.experts.rows; ++row) {
      for (std::int64_t k = 0; k < params.experts.cols; ++k) {
        ++chosen[static_cast<std::size_t>(layer * experts_ + params.experts.Row(row)[k])];
      }
    }
  }

 private:
  const std::int64_t layers_;
  const std::int64_t experts_;
  std::int64_t gates_ = 0;

 public:
  std::vector<std::int64_t> chosen;
};

enum class PairFault { kNone, kPaddingCounted, kOtherLayer };

// What a device could do wrong with the counts.
class MiscountingBackend final : public ForwardingBackend {
 public:
  MiscountingBackend(Backend& inner, PairFault fault) : ForwardingBackend(inner), fault_(fault) {}
  void Gate(const GateParams& params) override {
    GateParams changed = params;
    const bool is_next_layer =
        params.expert_pairs.data == before_.data + before_.size && before_.data != nullptr;
    if (fault_ == PairFault::kPaddingCounted) {
      changed.live_rows = {};
    } else if (fault_ == PairFault::kOtherLayer && is_next_layer) {
      changed.expert_pairs = before_;
    }
    before_ = params.expert_pairs;
    inner_.Gate(changed);
  }

 private:
  const PairFault fault_;
  Vector<std::int32_t> before_{};
};

}  // namespace

TEST_CASE("steps count pairs of rows and experts by layer, without padding", "[model][step]") {
  CpuBackend cpu(2);
  const TestModel model(CheckpointFolder("v32_fp8", FindGoldenCase("v32_fp8").options), cpu);
  GateWatch watch(cpu, model.config);
  const auto counts_of = [&](bool recorded, Backend& backend) {
    std::vector<std::int64_t> counts;
    SequenceRunner runner(
        [&](const ModelExecutorConfig& config) {
          return std::make_unique<PairCounts>(
              ModelExecutor::Create(backend, model.loaded(), config).value(), counts);
        },
        model.config, Options(model, recorded));
    RunBoth(runner);
    CHECK((runner.steps_recorded() > 30) == recorded);
    return counts;
  };
  const std::vector<std::int64_t> eager = counts_of(false, watch);
  REQUIRE(eager.size() == watch.chosen.size());
  CHECK(eager == watch.chosen);
  for (const PairFault fault :
       {PairFault::kNone, PairFault::kPaddingCounted, PairFault::kOtherLayer}) {
    CpuBackend other(2);  // a backend has scratch for one executor
    MiscountingBackend backend(other, fault);
    CAPTURE(static_cast<int>(fault));
    CHECK((counts_of(true, backend) == eager) == (fault == PairFault::kNone));
  }
}

}  // namespace dsa::testing
