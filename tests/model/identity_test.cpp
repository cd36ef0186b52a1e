// What a sequence computes is its own affair: its logits are the same bits alone or in a batch, in
// any chunks, in any blocks, after a prefix hit or a preemption, on any number of threads.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "kernels/fused/project.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/latent_attention.h"
#include "tests/model/golden.h"
#include "tests/model/sequence_runner.h"

#include <cstring>
#include <numeric>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

// One of each family and cache format.
std::vector<std::string> Models() {
  return {"v32_f32", "v32_fp8", "glm_bf16", "v3_fp8"};
}

std::vector<std::int32_t> Prompt(std::int64_t tokens, std::int32_t seed) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] =
        static_cast<std::int32_t>((i * 37 + i * i * 11 + static_cast<std::size_t>(seed)) % 119);
  }
  return ids;
}

// A model on a backend of its own.
struct Setting {
  Setting(const std::string& name, int threads)
      : backend(threads), model(CheckpointFolder(name, FindGoldenCase(name).options), backend) {
    options.kv_format = model.config.default_kv_format();
  }

  CpuBackend backend;
  TestModel model;
  RunOptions options;
};

SequenceOutput RunAlone(const std::string& name, const SequenceRequest& request) {
  Setting setting(name, 1);
  SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
  return runner.Run({request}).front();
}

// Every position that `got` computed has the bits of `expected`, which computed all of them.
bool SameBits(const SequenceOutput& got, const SequenceOutput& expected) {
  if (got.ids != expected.ids || got.faulty || expected.faulty) {
    return false;
  }
  for (const auto& [position, row] : got.logits) {
    const std::vector<float>& other = expected.logits.at(position);
    if (std::memcmp(row.data(), other.data(), row.size() * sizeof(float)) != 0) {
      return false;
    }
  }
  return !got.logits.empty();
}

const SequenceRequest kRequest = {.prompt = Prompt(150, 3), .max_tokens = 12};

}  // namespace

TEST_CASE("a prompt computed in chunks gives the bits of the whole", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  const SequenceOutput whole = RunAlone(name, kRequest);
  REQUIRE(whole.logits.size() == 150 + 12 - 1);
  for (const std::int64_t chunk : {1, 7, 16, 17, 63, 64, 65}) {
    Setting setting(name, 2);
    setting.options.step_tokens_max = chunk;
    SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
    const SequenceOutput chunked = runner.Run({kRequest}).front();
    CAPTURE(name, chunk);
    CHECK(chunked.logits.size() == whole.logits.size());
    CHECK(SameBits(chunked, whole));
  }
}

TEST_CASE("a sequence gives the same bits alone and in a batch", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  const std::int64_t step_tokens = GENERATE(24, 256);
  std::vector<SequenceRequest> requests = {kRequest};
  for (const std::int64_t tokens : {1, 15, 16, 17, 64, 65, 130}) {
    requests.push_back(
        {.prompt = Prompt(tokens, static_cast<std::int32_t>(tokens)), .max_tokens = 20});
  }
  Setting setting(name, 2);
  setting.options.step_tokens_max = step_tokens;
  SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
  const std::vector<SequenceOutput> together = runner.Run(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(name, step_tokens, i);
    CHECK(SameBits(together[i], RunAlone(name, requests[i])));
  }
}

TEST_CASE("the number of threads and the tiles of scores change no bit", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  const SequenceOutput alone = RunAlone(name, kRequest);
  for (const int threads : {2, 3, 5}) {
    Setting setting(name, threads);
    setting.options.score_bytes_max = threads == 3 ? 1 : 1 << 22;
    SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
    CAPTURE(name, threads);
    CHECK(SameBits(runner.Run({kRequest}).front(), alone));
  }
}

TEST_CASE("which blocks hold the keys changes no bit", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  Setting setting(name, 2);
  SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
  runner.Run({{.prompt = Prompt(200, 77), .max_tokens = 5}});  // leaves its keys behind
  runner.ShuffleFreeBlocks();
  CAPTURE(name);
  CHECK(SameBits(runner.Run({kRequest}).front(), RunAlone(name, kRequest)));
}

TEST_CASE("a prefix hit gives the bits of computing it", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  Setting setting(name, 2);
  SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
  // Shares two blocks with the request and then differs.
  SequenceRequest first = kRequest;
  first.prompt.resize(140);
  first.prompt.back() = 5;
  runner.Run({first});
  SequenceRequest sampled_only = kRequest;
  sampled_only.prompt_logits = PromptLogits::kNone;
  const SequenceOutput hit = runner.Run({sampled_only}).front();
  CAPTURE(name);
  CHECK(hit.cache_hit_tokens == 128);
  CHECK(hit.logits.size() == 12);
  CHECK(SameBits(hit, RunAlone(name, kRequest)));
  // A second hit, while another sequence still computes.
  const auto both = runner.Run({{.prompt = Prompt(90, 9), .max_tokens = 30}, sampled_only});
  CHECK(both[1].cache_hit_tokens == 128);
  CHECK(SameBits(both[1], RunAlone(name, kRequest)));
}

TEST_CASE("a preempted sequence goes on with the same bits", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  Setting setting(name, 2);
  setting.options.blocks = 6;  // two sequences of 3 blocks fit, their growth does not
  SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
  const std::vector<SequenceRequest> requests = {
      {.prompt = Prompt(100, 1), .max_tokens = 100},
      {.prompt = Prompt(120, 2), .max_tokens = 80},
      {.prompt = Prompt(60, 4), .max_tokens = 90},
  };
  const std::vector<SequenceOutput> outputs = runner.Run(requests);
  std::int32_t preemptions = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(name, i, outputs[i].preemptions);
    preemptions += outputs[i].preemptions;
    CHECK(SameBits(outputs[i], RunAlone(name, requests[i])));
  }
  CHECK(preemptions > 0);
}

// Chunks of 16 rows and more, by what steps take; one prompt overtakes another in between.
TEST_CASE("chunks by time change no bit, nor do prompts that overtake", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  const std::vector<SequenceRequest> requests = {
      {.prompt = Prompt(1, 5), .max_tokens = 60},
      kRequest,
      {.prompt = Prompt(20, 20), .max_tokens = 20},
      {.prompt = Prompt(130, 130), .max_tokens = 20},
  };
  for (const std::int32_t blocks : {64, 6}) {
    Setting setting(name, 2);
    setting.options.step_time_target_us = 150;
    setting.options.blocks = blocks;
    SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
    const std::vector<SequenceOutput> together = runner.Run(requests);
    CAPTURE(name, blocks, runner.steps());
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(i);
      CHECK(SameBits(together[i], RunAlone(name, requests[i])));
    }
  }
}

// Paths are decided once for a sequence, so that masked attention depends on no chunk either.
TEST_CASE("with masked attention, chunks and a preemption change no bit", "[model][identity]") {
  const std::string name = GENERATE(as<std::string>(), "v32_fp8", "v3_fp8");
  const auto run = [&](std::int64_t step_tokens, std::int32_t blocks) {
    Setting setting(name, 2);
    setting.options.masked_until = 90;  // above and below top-k, within the prompt
    setting.options.step_tokens_max = step_tokens;
    setting.options.blocks = blocks;
    SequenceRunner runner(setting.backend, setting.model.loaded(), setting.options);
    return runner.Run({{.prompt = Prompt(60, 3), .max_tokens = 100},
                       {.prompt = Prompt(120, 2), .max_tokens = 80}});
  };
  const std::vector<SequenceOutput> whole = run(256, 64);
  CHECK(whole[0].preemptions + whole[1].preemptions == 0);
  for (const auto& [step_tokens, blocks] : {std::pair{33, 64}, std::pair{256, 5}}) {
    const std::vector<SequenceOutput> other = run(step_tokens, blocks);
    CAPTURE(name, step_tokens, blocks);
    CHECK((other[0].preemptions + other[1].preemptions > 0) == (blocks == 5));
    CHECK(SameBits(other[0], whole[0]));
    CHECK(SameBits(other[1], whole[1]));
  }
}

// The absorbed arithmetic is one and the same: a selection of every visible key is the dense path.
TEST_CASE("selecting every key gives the bits of dense attention", "[model][identity]") {
  const std::string name = GENERATE(as<std::string>(), "v32_f32", "v32_fp8", "glm_bf16");
  Setting dense(name, 2);
  dense.options.attention = AttentionMode::kDense;
  SequenceRunner dense_runner(dense.backend, dense.model.loaded(), dense.options);
  const SequenceOutput all_keys = dense_runner.Run({kRequest}).front();
  Setting sparse(name, 2);
  const std::int64_t topk = sparse.model.config.index_topk;
  SequenceRunner sparse_runner(sparse.backend, sparse.model.loaded(), sparse.options);
  const SequenceOutput selected = sparse_runner.Run({kRequest}).front();
  CAPTURE(name);
  for (std::int64_t position = 0; position < 150; ++position) {
    CAPTURE(position);
    const bool same = all_keys.logits.at(position) == selected.logits.at(position);
    CHECK(same == (position < topk));
  }
}

namespace {

// Has queries absorbed by the product that gives them, wherever it is asked.
class AbsorbsEarly final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  bool AbsorbsInProject(const ProjectParams& params) const override {
    return params.absorbed.has_value();
  }
  void Project(const ProjectParams& params) override {
    ForwardingBackend::Project(params);
    absorbed_rows += params.absorbed ? params.x.x.rows : 0;
  }
  void AbsorbQuery(const AbsorbQueryParams& params) override {
    inner_.AbsorbQuery(params);
    all_absorbed_rows += params.q_nope.rows;
  }
  std::int64_t absorbed_rows = 0;
  std::int64_t all_absorbed_rows = 0;
};

}  // namespace

// Of steps without a row whose keys are expanded; those of the others are absorbed where they were.
TEST_CASE("queries absorbed behind their products change no bit", "[model][identity]") {
  const std::string name = GENERATE_COPY(from_range(Models()));
  const std::int64_t masked_until = GENERATE(0, 90);
  const bool last_has_indexer = GENERATE(true, false);
  CAPTURE(name, masked_until, last_has_indexer);
  // One sequence's rows are expanded until the other's, which are absorbed, have begun.
  const std::vector<SequenceRequest> requests = {{.prompt = Prompt(60, 3), .max_tokens = 40},
                                                 {.prompt = Prompt(120, 2), .max_tokens = 60}};
  const auto run = [&](Setting& setting, Backend& backend) {
    setting.options.masked_until = masked_until;
    if (!last_has_indexer) {
      setting.model.weights().layers.back().indexer.reset();
    }
    SequenceRunner runner(backend, setting.model.loaded(), setting.options);
    return runner.Run(requests);
  };
  Setting plain(name, 2);
  const std::vector<SequenceOutput> expected = run(plain, plain.backend);
  Setting setting(name, 2);
  AbsorbsEarly early(setting.backend);
  const std::vector<SequenceOutput> outputs = run(setting, early);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(SameBits(outputs[i], expected[i]));
  }
  CHECK(early.absorbed_rows > 0);
  CHECK((early.absorbed_rows == early.all_absorbed_rows) == (masked_until == 0));
}

namespace {

// Keeps the slots that the sparse rows of each layer attend to.
class WatchSelections final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void LatentAttention(const LatentAttentionParams& params) override {
    inner_.LatentAttention(params);
    const Matrix<const std::int32_t>& slots = params.selection.slots;
    if (slots.data != nullptr) {
      layers.emplace_back(slots.data, slots.data + slots.rows * slots.cols);
    }
  }
  void PlanAttention(const PagedRows& rows, std::int64_t heads, bool batch_invariant) override {
    inner_.PlanAttention(rows, heads, batch_invariant);
    planned_rows += rows.positions.size;
  }
  std::vector<std::vector<std::int32_t>> layers;
  std::int64_t planned_rows = 0;
};

}  // namespace

// GLM-5.2: layers without an indexer read the keys that the last layer before them has selected.
TEST_CASE("a layer without an indexer attends to the selection of the layer before it",
          "[model][identity]") {
  const std::string name = GENERATE(as<std::string>(), "v32_f32", "v32_fp8", "glm_bf16");
  CAPTURE(name);
  Setting setting(name, 2);
  const std::size_t layers = setting.model.weights().layers.size();
  REQUIRE(layers > 1);
  const auto run = [](Setting& which) {
    WatchSelections backend(which.backend);
    SequenceRunner runner(backend, which.model.loaded(), which.options);
    const SequenceOutput output = runner.Run({kRequest}).front();
    CHECK(backend.planned_rows == static_cast<std::int64_t>(output.logits.size()));  // once a step
    return backend.layers;
  };
  Setting every(name, 2);
  const auto own = run(every);
  REQUIRE(own.size() >= layers);
  CHECK(own[layers - 1] != own[layers - 2]);
  setting.model.weights().layers.back().indexer.reset();
  const auto shared = run(setting);
  CHECK(shared.size() == own.size());
  CHECK(shared[layers - 2] == own[layers - 2]);
  CHECK(shared[layers - 1] == shared[layers - 2]);
}

}  // namespace dsa::testing
