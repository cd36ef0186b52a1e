// What the engine adds to a step: everything but the model.
//
//   engine_bench [tokenizer.json]
//
// 256 running sequences of 4K tokens decode 10,000 steps with an executor that does nothing: plan,
// batch, commit, detokenization, stop check and outbox together.  Ten rounds of 1,000 steps, each
// from 3,596 tokens to 4,596, so that the sequences have 4K tokens in the mean.  The same with an
// executor that runs ahead, as a GPU does: what stands between the result of a step and the launch
// of the next one, while its text waits for the next one to run.  Then the prefix cache: hashing a
// 128K prompt (on the submitting thread) and looking it up (on the engine thread).
#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "cache/prefix_hash.h"
#include "common/clock.h"
#include "common/prng.h"
#include "server/engine/engine_loop.h"
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kSequences = 256;
constexpr std::int64_t kRounds = 10;
constexpr std::int64_t kRoundSteps = 1000;
constexpr std::int32_t kPromptTokens = 4096 - kRoundSteps / 2;
constexpr std::int64_t kLongPrompt = 131072;
constexpr std::int32_t kBlockTokens = 64;
constexpr std::int32_t kVocabulary = 129280;

double NowUs() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Median, 99th percentile and largest of the samples, in microseconds.
void Print(const char* what, std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const std::size_t count = samples.size();
  fmt::print("{:<44} median {:9.2f} us   p99 {:9.2f} us   max {:9.2f} us   n {}\n", what,
             samples[count / 2], samples[count * 99 / 100], samples.back(), count);
}

// How often each id comes.
enum class Ids {
  kLogUniform,  // nearly as in text: a byte-pair vocabulary is ordered by frequency
  kUniform,     // the worst for the host's caches
};

// Computes nothing: its tokens are drawn before the clock of a step is read.
class IdleExecutor final : public StepExecutor {
 public:
  IdleExecutor(std::int32_t token_limit, Ids ids) : token_limit_(token_limit), ids_(ids) {
    tokens_.resize(kSequences);
    DrawTokens();
  }

  void DrawTokens() {
    for (std::int32_t& token : tokens_) {
      const double share = CounterUniform(5, counter_++);
      token = static_cast<std::int32_t>(ids_ == Ids::kUniform ? share * token_limit_
                                                              : std::pow(token_limit_, share));
    }
    FillTokens();
  }

  void Launch(const ForwardBatch& batch) override {
    gaps_us.push_back(NowUs() - collected_us_);
    if (shape_ != batch.shape) {
      shape_ = batch.shape;
      FillTokens();
    }
  }
  const StepResult& Collect() override {
    collected_us_ = NowUs();
    return outputs_.result();
  }
  bool RunsAhead() const override { return runs_ahead; }

  bool runs_ahead = false;
  std::vector<double> gaps_us;  // from a result to the next launch

 private:
  void FillTokens() {
    std::swap(outputs_, before_);
    const StepOutputs& outputs = outputs_.Reset(shape_);
    std::copy_n(tokens_.begin(), outputs.tokens.size, outputs.tokens.data);
  }

  std::int32_t token_limit_;
  Ids ids_;
  std::uint64_t counter_ = 0;
  std::vector<std::int32_t> tokens_;
  StepShape shape_{};
  HostStepOutputs outputs_;
  HostStepOutputs before_;  // of the step before, which may be shown late
  double collected_us_ = 0;
};

class CountingSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override { bytes += delta.text.size(); }
  std::size_t bytes = 0;
};

Request MakeRequest(std::int64_t index) {
  Request request;
  request.external_id = fmt::format("r{}", index);
  for (std::int32_t i = 0; i < kPromptTokens; ++i) {
    request.prompt.push_back(
        TokenId{static_cast<std::int32_t>(CounterBits(index, i) % kVocabulary)});
  }
  request.stop.max_tokens = 2 * kRoundSteps;  // no reply ends within a round
  request.stop.ignore_end = true;
  request.stop.stop_strings = {"\n\nUser:", "<stop>"};
  return request;
}

struct Samples {
  std::vector<double> steps_us;
  std::vector<double> pumps_us;
  std::vector<double> gaps_us;
};

void RunRound(const TextDecoderFactory* decoders, IdleExecutor& executor, Samples& samples) {
  const SteadyClock clock;
  const std::int64_t context = kPromptTokens + 4 * kRoundSteps;
  EngineLoop engine({.scheduler = {.step_tokens_max = 8192,
                                   .sequences_max = kSequences,
                                   .waiting_max = 512,
                                   .context_tokens_max = context,
                                   .index_topk = 2048},
                     .blocks = static_cast<std::int32_t>(kSequences * (context / kBlockTokens + 1)),
                     .tokens_per_block = kBlockTokens,
                     .vocabulary = kVocabulary,
                     .end_ids = {TokenId{1}},
                     .cache_identity = "bench"},
                    {.executor = executor, .clock = clock, .decoders = decoders});
  auto sink = std::make_shared<CountingSink>();
  for (std::int64_t i = 0; i < kSequences; ++i) {
    auto request = MakeRequest(i);
    if (decoders == nullptr) {
      request.stop.stop_strings.clear();
    }
    const Status status = engine.Submit(std::move(request), sink);
    if (!status.ok()) {
      fmt::print(stderr, "{}\n", status.error().message);
      return;
    }
  }
  while (engine.Load().waiting > 0 || engine.Load().tokens_computed < kSequences * kPromptTokens) {
    engine.RunOnce();
    engine.PumpOnce();
  }
  executor.gaps_us.clear();
  for (std::int64_t step = 0; step < kRoundSteps; ++step) {
    executor.DrawTokens();
    const double start = NowUs();
    engine.RunOnce();
    const double end = NowUs();
    engine.PumpOnce();
    samples.pumps_us.push_back(NowUs() - end);
    samples.steps_us.push_back(end - start);
  }
  samples.gaps_us.insert(samples.gaps_us.end(), executor.gaps_us.begin() + 1,
                         executor.gaps_us.end());
}

void BenchStep(const char* what, const TextDecoderFactory* decoders, IdleExecutor& executor) {
  Samples samples;
  for (std::int64_t round = 0; round < kRounds; ++round) {
    RunRound(decoders, executor, samples);
  }
  Print(what, std::move(samples.steps_us));
  Print("  stream pump, its own thread in a server", std::move(samples.pumps_us));
  if (executor.runs_ahead) {
    Print("  result of a step to the next launch", std::move(samples.gaps_us));
  }
}

void BenchPrefix() {
  const PrefixHasher hasher({.identity = "bench", .tokens_per_block = kBlockTokens});
  constexpr std::int64_t kBlocks = kLongPrompt / kBlockTokens;
  BlockPool pool(4 * kBlocks, kBlockTokens);
  PrefixCache cache(pool);
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < kLongPrompt; ++i) {
    tokens.push_back(TokenId{static_cast<std::int32_t>(CounterBits(9, i) % kVocabulary)});
  }
  std::vector<double> hashing;
  std::vector<double> lookups;
  for (int round = 0; round < 200; ++round) {
    PrefixChain chain;
    chain.hashes.reserve(kBlocks);
    const double start = NowUs();
    chain.root = hasher.Root("");
    hasher.Extend(tokens, chain);
    hashing.push_back(NowUs() - start);
    BlockTable table(kBlockTokens);
    table.Reserve(kBlocks);
    if (round == 0) {
      while (table.blocks() < kBlocks) {
        table.Append(*pool.TryAllocate());
      }
      cache.Publish(tokens, kBlocks, chain, table);
      continue;
    }
    const double lookup = NowUs();
    const std::int64_t found = cache.Match(tokens, kBlocks, chain, table);
    lookups.push_back(NowUs() - lookup);
    if (found != kBlocks) {
      fmt::print(stderr, "found {} of {} blocks\n", found, kBlocks);
      return;
    }
  }
  Print("prefix of 128K tokens, hash (submitting)", std::move(hashing));
  Print("prefix of 128K tokens, lookup (engine)", std::move(lookups));
}

int Main(const char* tokenizer_path) {
  IdleExecutor silent(kVocabulary, Ids::kUniform);
  BenchStep("step, 256 x 4K, no text", nullptr, silent);
  if (tokenizer_path != nullptr) {
    const auto tokenizer = Tokenizer::Load(tokenizer_path);
    if (!tokenizer.ok()) {
      fmt::print(stderr, "{}\n", tokenizer.error().message);
      return ExitCode(tokenizer.error());
    }
    const auto decoders = MakeTextDecoderFactory(*tokenizer.value());
    const std::int32_t limit = std::min(kVocabulary, tokenizer.value()->size());
    IdleExecutor natural(limit, Ids::kLogUniform);
    BenchStep("step, 256 x 4K, text, 2 stop strings", decoders.get(), natural);
    natural.runs_ahead = true;
    BenchStep("step, 256 x 4K, text, runs ahead", decoders.get(), natural);
    IdleExecutor uniform(limit, Ids::kUniform);
    BenchStep("step, 256 x 4K, text of uniform ids", decoders.get(), uniform);
  }
  BenchPrefix();
  return 0;
}

}  // namespace
}  // namespace dsa::bench

int main(int argc, char** argv) {
  return dsa::bench::Main(argc > 1 ? argv[1] : nullptr);
}
