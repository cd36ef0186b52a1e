#include "tests/sim/fake_model.h"

#include "common/check.h"
#include "common/prng.h"
#include "kernels/batch_view.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include <fmt/format.h>

namespace dsa::sim {
namespace {

constexpr std::array<AttentionPath, kAttentionPaths> kByPosition = {
    AttentionPath::kMaskedAll, AttentionPath::kDense, AttentionPath::kMaskedSelected,
    AttentionPath::kSparse};

// A position's share in the sum over a prefix.
std::uint64_t Weigh(std::uint64_t value, std::int64_t position) {
  return value * (2 * static_cast<std::uint64_t>(position) + 0x9E3779B97F4A7C15ULL);
}

// What a position stores: its token, and all positions before it.
std::uint64_t ValueOf(std::uint64_t prefix_sum, std::int32_t token, std::int64_t position) {
  return SplitMix64(prefix_sum ^ SplitMix64(static_cast<std::uint64_t>(position) << 32 |
                                            static_cast<std::uint32_t>(token)));
}

bool LogitsFaulty(const SimConfig& config, std::uint64_t value) {
  return config.faulty_one_in > 0 && SplitMix64(value + 1) % config.faulty_one_in == 0;
}

// The token that follows a position of this value.
template <typename IsSuppressed>
std::int32_t Draw(const SimConfig& config, std::uint64_t value, std::uint64_t noise,
                  const IsSuppressed& is_suppressed) {
  auto token = static_cast<std::int32_t>(SplitMix64(value ^ noise) % config.vocabulary);
  while (is_suppressed(token)) {
    token = (token + 1) % config.vocabulary;
  }
  return token;
}

std::uint64_t NoiseOf(float temperature, std::uint64_t seed, std::int64_t position) {
  return temperature == 0.0F ? 0 : CounterBits(seed, position);
}

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

class FakeDecoder final : public TextDecoder {
 public:
  explicit FakeDecoder(const SimConfig& config) : config_(config) {}
  void Push(TokenId id, std::string& out) override {
    std::string piece = (pending_ ? "<" : "") + PieceOf(config_, id);
    pending_ = !piece.empty() && piece.back() == '<';
    if (pending_) {
      piece.pop_back();
    }
    out += piece;
  }
  void Finish(std::string& out) override {
    if (pending_) {
      out += '?';
    }
    pending_ = false;
  }

 private:
  const SimConfig& config_;
  bool pending_ = false;
};

}  // namespace

std::string PieceOf(const SimConfig& config, TokenId id) {
  static constexpr std::array<const char*, 8> kPieces = {"a",  "b", "ab", "",
                                                         "ba", "<", "c<", "aab"};
  const std::uint64_t pick = CounterBits(config.seed, 1000 + Value(id));
  return kPieces[pick % kPieces.size()];
}

std::unique_ptr<TextDecoder> FakeDecoderFactory::Make() const {
  return std::make_unique<FakeDecoder>(config_);
}

std::string TextOf(const SimConfig& config, const std::vector<TokenId>& tokens) {
  std::string text;
  for (const TokenId id : tokens) {
    text += Contains(config.end_ids, id) ? "" : PieceOf(config, id);
  }
  if (!text.empty() && text.back() == '<') {
    text.back() = '?';
  }
  return text;
}

namespace {

// Looks for stop strings in the bytes from `first` on; cuts the text before the first found.
bool FindStop(const StopConditions& stop, std::size_t first, std::string& text) {
  for (std::size_t end = first + 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& candidate : stop.stop_strings) {
      if (candidate.size() <= end &&
          text.compare(end - candidate.size(), candidate.size(), candidate) == 0) {
        longest = std::max(longest, candidate.size());
      }
    }
    if (longest > 0) {
      text.resize(end - longest);
      return true;
    }
  }
  return false;
}

// The text of `tokens` as far as the decoder shows it.
std::string ShownText(const SimConfig& config, const std::vector<TokenId>& tokens) {
  std::string text = TextOf(config, tokens);
  if (!text.empty() && text.back() == '?') {
    text.pop_back();
  }
  return text;
}

// Judges the reply after its last token; true where it ends.
bool Judge(const SimConfig& config, const StopConditions& stop, Expected& expected) {
  const TokenId last = expected.tokens.back();
  const auto generated = static_cast<std::int64_t>(expected.tokens.size());
  const bool end_id = Contains(config.end_ids, last);
  std::vector<TokenId> before = expected.tokens;
  before.pop_back();
  if ((end_id && !stop.ignore_end) || Contains(stop.stop_ids, last)) {
    expected.text = TextOf(config, before);
    expected.finish = FinishReason::kStop;
    return true;
  }
  if (stop.stop_strings.empty() && generated < stop.max_tokens) {
    return false;
  }
  const std::size_t seen = ShownText(config, before).size();
  expected.text = ShownText(config, expected.tokens);
  if (generated >= stop.min_tokens && FindStop(stop, seen, expected.text)) {
    expected.finish = FinishReason::kStop;
    return true;
  }
  if (generated < stop.max_tokens) {
    return false;
  }
  const std::size_t shown = expected.text.size();
  expected.text = TextOf(config, expected.tokens);
  expected.finish =
      FindStop(stop, shown, expected.text) ? FinishReason::kStop : FinishReason::kLength;
  return true;
}

}  // namespace

Expected RunAlone(const SimConfig& config, const Request& request) {
  Expected expected;
  std::vector<TokenId> tokens = request.prompt;
  std::uint64_t sum = 0;
  std::uint64_t value = 0;
  for (std::size_t position = 0;; ++position) {
    if (position == tokens.size()) {
      if (LogitsFaulty(config, value)) {
        expected.finish = FinishReason::kError;
        break;
      }
      const bool early =
          static_cast<std::int64_t>(expected.tokens.size()) < request.stop.min_tokens;
      const auto is_suppressed = [&](std::int32_t id) {
        return early && ((!request.stop.ignore_end && Contains(config.end_ids, TokenId{id})) ||
                         Contains(request.stop.stop_ids, TokenId{id}));
      };
      const std::uint64_t noise =
          NoiseOf(request.sampling.temperature, request.sampling.seed, position);
      tokens.push_back(TokenId{Draw(config, value, noise, is_suppressed)});
      expected.tokens.push_back(tokens.back());
      if (Judge(config, request.stop, expected)) {
        return expected;
      }
    }
    if (tokens[position] == config.poison) {
      expected.finish = FinishReason::kError;
      break;
    }
    value = ValueOf(sum, Value(tokens[position]), position);
    sum += Weigh(value, position);
  }
  expected.text = TextOf(config, expected.tokens);
  return expected;
}

void FakeExecutor::CheckShape(const ForwardBatch& batch) const {
  const std::size_t rows = batch.token_ids.size();
  SIM_CHECK(rows > 0, "an empty batch");
  SIM_CHECK(static_cast<std::int64_t>(rows) <= config_.scheduler.step_tokens_max,
            "a batch beyond the token budget");
  SIM_CHECK(batch.positions.size() == rows && batch.slots.size() == rows &&
                batch.sequences.size() == rows,
            "arrays of different lengths");
  const std::int64_t sequences =
      static_cast<std::int64_t>(batch.block_tables.size()) / batch.block_table_stride;
  SIM_CHECK(sequences <= config_.scheduler.sequences_max, "more sequences than may run");
  std::vector<std::vector<std::int32_t>> positions(sequences);
  for (std::size_t row = 0; row < rows; ++row) {
    positions[batch.sequences[row]].push_back(batch.positions[row]);
  }
  for (std::vector<std::int32_t>& own : positions) {
    SIM_CHECK(!own.empty(), "a sequence without rows");
    std::sort(own.begin(), own.end());
    for (std::size_t i = 1; i < own.size(); ++i) {
      SIM_CHECK(own[i] == own[i - 1] + 1, "positions of a sequence are not consecutive");
    }
  }
}

// The path of a position, from what a request is and what was found of it when it first ran.
AttentionPath FakeExecutor::ExpectedPath(const Sequence& sequence, std::int64_t position) const {
  const SchedulerConfig& scheduler = config_.scheduler;
  const std::int64_t found = writes_.first_computed().at(Value(sequence.request().id));
  const std::int64_t below = std::min(sequence.prompt_tokens(), scheduler.masked_mha_until);
  const bool masked = position < below && below >= found + scheduler.masked_rows_min;
  const bool selects =
      scheduler.attention == AttentionMode::kSparse && position >= scheduler.index_topk;
  if (selects) {
    return masked ? AttentionPath::kMaskedSelected : AttentionPath::kSparse;
  }
  return masked ? AttentionPath::kMaskedAll : AttentionPath::kDense;
}

void FakeExecutor::CheckRuns(const ForwardBatch& batch) const {
  std::vector<AttentionPath> paths;
  for (const AttentionRun& run : batch.runs) {
    SIM_CHECK(run.first_row == static_cast<std::int32_t>(paths.size()) && run.rows > 0,
              "attention runs leave a gap");
    paths.insert(paths.end(), run.rows, run.path);
  }
  SIM_CHECK(paths.size() == batch.token_ids.size(), "rows without a path");
  std::size_t row = 0;
  for (const StepPlan::Row& planned : scheduler_->in_flight()->rows) {
    const Sequence& sequence = *scheduler_->Find(planned.sequence, planned.slot);
    for (std::int64_t i = 0; i < planned.tokens; ++i, ++row) {
      SIM_CHECK(paths[row] == ExpectedPath(sequence, planned.first_position + i),
                fmt::format("position {} takes the wrong path", planned.first_position + i));
    }
  }
}

void FakeExecutor::ComputeRow(const ForwardBatch& batch, std::int64_t row) {
  const std::int32_t block_tokens = config_.tokens_per_block;
  const std::int64_t position = batch.positions[row];
  const std::int32_t* table =
      batch.block_tables.data() + batch.sequences[row] * batch.block_table_stride;
  std::uint64_t sum = 0;
  for (std::int64_t first = 0; first < position; first += block_tokens) {
    const std::int64_t block = table[first / block_tokens];
    SIM_CHECK(block >= 0, "a block table ends too early");
    const std::int64_t count = std::min<std::int64_t>(block_tokens, position - first);
    for (std::int64_t i = 0; i < count; ++i) {
      sum += Weigh(values_[block * block_tokens + i], first + i);
    }
  }
  const std::int64_t own = table[position / block_tokens];
  SIM_CHECK(batch.slots[row] == own * block_tokens + position % block_tokens,
            "a slot is not where the block table says");
  values_[batch.slots[row]] = ValueOf(sum, batch.token_ids[row], position);
  row_faults_[row] = TokenId{batch.token_ids[row]} == config_.poison ? kRowFaultIndexerNan : 0;
}

void FakeExecutor::Sample(const ForwardBatch& batch) {
  for (std::size_t i = 0; i < batch.sample_rows.size(); ++i) {
    const std::int32_t row = batch.logit_rows[batch.sample_rows[i]];
    const SamplingRow& sampling = batch.sampling[i];
    SIM_CHECK(sampling.position == batch.positions[row] + 1, "a sample at the wrong position");
    const auto adjustments =
        batch.adjustments.subspan(sampling.adjustments_first, sampling.adjustments_count);
    const auto is_suppressed = [&](std::int32_t id) {
      return std::any_of(adjustments.begin(), adjustments.end(),
                         [id](const LogitAdjustment& adjustment) {
                           return adjustment.id == id && std::isinf(adjustment.add);
                         });
    };
    const std::uint64_t value = values_[batch.slots[row]];
    const std::uint64_t noise = NoiseOf(sampling.temperature, sampling.seed, sampling.position);
    tokens_[i] = Draw(config_, value, noise, is_suppressed);
    logprobs_[i] = -static_cast<float>(tokens_[i]);
    sample_faults_[i] = LogitsFaulty(config_, value) ? kRowFaultLogits : 0;
    for (std::int32_t k = 0; k < kTopLogprobsMax; ++k) {
      const bool wanted = k < sampling.top_logprobs;
      top_ids_[i * kTopLogprobsMax + k] = wanted ? (tokens_[i] + k) % config_.vocabulary : -1;
      top_logprobs_[i * kTopLogprobsMax + k] = -static_cast<float>(k);
    }
  }
}

const StepResult& FakeExecutor::Execute(const ForwardBatch& batch) {
  CheckShape(batch);
  waits_.CheckPlan(*scheduler_, *pool_, writes_.CheckSchedule(batch));
  CheckRuns(batch);
  const std::size_t samples = batch.sample_rows.size();
  row_faults_.assign(batch.token_ids.size(), 0);
  tokens_.assign(samples, 0);
  logprobs_.assign(samples, 0.0F);
  sample_faults_.assign(samples, 0);
  top_ids_.assign(samples * kTopLogprobsMax, -1);
  top_logprobs_.assign(samples * kTopLogprobsMax, 0.0F);
  // A real model writes all keys of a layer before any row attends; here, where a value depends on
  // those before it, the rows of a sequence must come by position.
  for (const AttentionPath path : kByPosition) {
    for (const AttentionRun& run : batch.runs) {
      for (std::int64_t row = 0; run.path == path && row < run.rows; ++row) {
        ComputeRow(batch, run.first_row + row);
      }
    }
  }
  Sample(batch);
  on_execute_();
  writes_.CheckLanding();
  result_ = {.tokens = tokens_,
             .logprobs = logprobs_,
             .top_ids = top_ids_,
             .top_logprobs = top_logprobs_,
             .row_faults = row_faults_,
             .sample_faults = sample_faults_,
             .logits = {}};
  return result_;
}

}  // namespace dsa::sim
