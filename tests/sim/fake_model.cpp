#include "tests/sim/fake_model.h"

#include "common/check.h"
#include "common/prng.h"
#include "kernels/batch_view.h"
#include "server/engine/adjustment_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include <fmt/format.h>

namespace dsa::sim {
namespace {

constexpr std::array<AttentionPath, kAttentionPaths> kByPosition = {
    AttentionPath::kMaskedAll, AttentionPath::kDense, AttentionPath::kMaskedSelected,
    AttentionPath::kSparse};

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

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

// An adjusted logit's share in what is drawn; 0 where nothing is adjusted.
std::uint64_t Weigh(const LogitAdjustment& adjustment) {
  if (adjustment.add == 0.0F && adjustment.repetition == 1.0F) {
    return 0;
  }
  return SplitMix64(std::uint64_t{std::bit_cast<std::uint32_t>(adjustment.add)} << 32 |
                    std::bit_cast<std::uint32_t>(adjustment.repetition)) *
         (2 * static_cast<std::uint64_t>(adjustment.id) + 1);
}

// What penalties and biases change in front of the next token, from vLLM's definitions.
std::uint64_t AdjustmentsAlone(const SimConfig& config, const Request& request,
                               const std::vector<TokenId>& generated) {
  const SamplingParams& sampling = request.sampling;
  std::uint64_t sum = 0;
  for (std::int32_t id = 0; id < config.vocabulary; ++id) {
    const auto times = std::count(generated.begin(), generated.end(), TokenId{id});
    const bool repeated = times > 0 || Contains(request.prompt, TokenId{id});
    double add = 0;
    for (const LogitBias& bias : sampling.logit_bias) {
      add += bias.id == TokenId{id} ? bias.add : 0;
    }
    add -= double{sampling.frequency_penalty} * static_cast<double>(times);
    add -= times > 0 ? sampling.presence_penalty : 0;
    sum += Weigh({.id = id,
                  .add = static_cast<float>(add),
                  .repetition = repeated ? sampling.repetition_penalty : 1.0F});
  }
  return sum;
}

// The log-probability of a token behind a position of this value.
float LogprobOf(std::uint64_t value, std::int32_t token) {
  return -static_cast<float>(SplitMix64(value + static_cast<std::uint64_t>(token)) % 4096);
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
      const bool wanted = request.stop.max_tokens > 0;
      if (!wanted || LogitsFaulty(config, value)) {
        expected.finish = wanted ? FinishReason::kError : FinishReason::kLength;
        break;
      }
      const bool early =
          static_cast<std::int64_t>(expected.tokens.size()) < request.stop.min_tokens;
      const auto is_suppressed = [&](std::int32_t id) {
        return early && ((!request.stop.ignore_end && Contains(config.end_ids, TokenId{id})) ||
                         Contains(request.stop.stop_ids, TokenId{id}));
      };
      const std::uint64_t noise =
          NoiseOf(request.sampling.temperature, request.sampling.seed, position) ^
          AdjustmentsAlone(config, request, expected.tokens);
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
    if (position + 1 < request.prompt.size()) {
      expected.prompt_logprobs.push_back(LogprobOf(value, Value(tokens[position + 1])));
      if (request.prompt_logprobs.has_value() && LogitsFaulty(config, value)) {
        expected.finish = FinishReason::kError;
        break;
      }
    }
  }
  expected.text = TextOf(config, expected.tokens);
  return expected;
}

void FakeExecutor::Observe(const BlockPool& pool, const Scheduler& scheduler,
                           const StepCostModel& costs) {
  times_.Observe(costs);
  pool_ = &pool;
  scheduler_ = &scheduler;
  writes_.Observe(pool, scheduler);
  padding_row_ = scheduler.slots();
  table_columns_ = config_.scheduler.context_tokens_max / config_.tokens_per_block + 1;
  block_tables_.assign((padding_row_ + 1) * table_columns_, kNoBlock);
  block_tables_[padding_row_ * table_columns_] = config_.blocks;
  row_adjustments_ = RowAdjustments(config_.vocabulary, config_.scheduler.context_tokens_max,
                                    static_cast<std::int64_t>(config_.end_ids.size()));
  const std::int64_t given_rows =
      (config_.scheduler.prompt_logprob_rows_max + row_adjustments_ - 1) / row_adjustments_;
  adjustment_rows_ = config_.scheduler.sequences_max + given_rows;
  adjustments_.resize(adjustment_rows_ * row_adjustments_);
}

void FakeExecutor::CheckShape(const ForwardBatch& batch) const {
  const StepShape& shape = batch.shape;
  SIM_CHECK((batch.tokens > 0 || config_.data_ranks > 1) && batch.tokens <= shape.tokens,
            "an empty batch");
  SIM_CHECK((shape.exchange_rows > 0) == (config_.data_ranks > 1), "rows are exchanged, or not");
  SIM_CHECK(shape.tokens <= config_.scheduler.step_tokens_max, "a batch beyond the token budget");
  SIM_CHECK(shape.tokens == batch.tokens || batch.recorded, "a step is padded for nothing");
  SIM_CHECK(shape.logit_rows <= shape.tokens, "more rows of logits than rows");
  const StepPlan* plan = scheduler_->in_flight();  // null: none of this rank's
  SIM_CHECK(batch.recorded || plan == nullptr ||
                shape.samples - std::ssize(plan->sample_rows) <=
                    config_.scheduler.prompt_logprob_rows_max,
            "more logits of prompts than are held");
  std::map<std::int32_t, std::vector<std::int32_t>> positions;
  for (std::int64_t row = 0; row < shape.tokens; ++row) {
    const std::int32_t position = batch.positions[row];
    SIM_CHECK(position < shape.visible_max, "a row sees more than the step says");
    if (row < batch.tokens) {
      positions[batch.sequences[row]].push_back(position);
    } else {
      const std::int64_t first_slot = std::int64_t{config_.blocks} * config_.tokens_per_block;
      SIM_CHECK(batch.sequences[row] == padding_row_ && position == 0 &&
                    batch.slots[row] == first_slot + row - batch.tokens,
                "padding is not where it should be");
      SIM_CHECK(batch.slots[row] < static_cast<std::int64_t>(values_.size()),
                "padding has no block to write into");
    }
  }
  SIM_CHECK(static_cast<std::int64_t>(positions.size()) <= config_.scheduler.sequences_max,
            "more sequences than may run");
  for (auto& [sequence, own] : positions) {
    std::sort(own.begin(), own.end());
    for (std::size_t i = 1; i < own.size(); ++i) {
      SIM_CHECK(own[i] == own[i - 1] + 1, "positions of a sequence are not consecutive");
    }
  }
}

// A recorded step repeats what the first of its kind queued: by how many rows, on which path and
// under how many keys it is known, and nothing else of its shape may differ.
void FakeExecutor::CheckRecorded(const ForwardBatch& batch) {
  const StepShape& shape = batch.shape;
  if (!batch.recorded) {
    return;
  }
  SIM_CHECK(std::find(config_.row_buckets.begin(), config_.row_buckets.end(), shape.tokens) !=
                config_.row_buckets.end(),
            "a recorded step of other rows than were asked for");
  const bool sparse = shape.rows[static_cast<std::size_t>(AttentionPath::kSparse)] > 0;
  const auto [recorded, is_new] =
      recorded_.try_emplace({shape.tokens, sparse, shape.visible_max}, shape);
  SIM_CHECK(recorded->second == shape, "two shapes of one recorded step");
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

// In a recorded step all rows take one path: a row that sees no more keys than are selected may
// select all of them, beside one that must select.
void FakeExecutor::CheckPaths(const ForwardBatch& batch) {
  std::vector<AttentionPath> expected;
  launched_.decodes = true;
  const StepPlan* plan = scheduler_->in_flight();  // null: none of this rank's
  for (const StepPlan::Row& planned : plan == nullptr ? std::vector<StepPlan::Row>() : plan->rows) {
    const Sequence& sequence = *scheduler_->Find(planned.sequence, planned.slot);
    for (std::int64_t i = 0; i < planned.tokens; ++i) {
      expected.push_back(ExpectedPath(sequence, planned.first_position + i));
    }
    launched_.decodes = launched_.decodes && sequence.behind() == 1 &&
                        sequence.request().stop.max_tokens > 0 &&
                        planned.first_position + 1 == sequence.tokens() && !IsMasked(planned.path);
  }
  launched_.any_sparse =
      std::find(expected.begin(), expected.end(), AttentionPath::kSparse) != expected.end();
  if (batch.recorded) {
    // With other ranks one of theirs may be the row that must select.
    const bool sparse = config_.data_ranks > 1
                            ? batch.shape.rows[static_cast<std::size_t>(AttentionPath::kSparse)] > 0
                            : launched_.any_sparse;
    for (AttentionPath& path : expected) {
      path = sparse && path == AttentionPath::kDense ? AttentionPath::kSparse : path;
    }
    expected.resize(batch.shape.tokens, sparse ? AttentionPath::kSparse : AttentionPath::kDense);
  }
  std::vector<AttentionPath> paths;
  for (int path = 0; path < kAttentionPaths; ++path) {
    paths.insert(paths.end(), batch.shape.rows[path], static_cast<AttentionPath>(path));
  }
  SIM_CHECK(paths == expected, "a row takes the wrong path");
}

// What the device does with an upload.
void FakeExecutor::Upload(const ForwardBatch& batch) {
  device_.assign(batch.packed.begin(), batch.packed.end());
  inputs_ = InputsAt(device_.data(), batch.shape);
  SIM_CHECK(inputs_.live_rows.data[0] == batch.tokens, "rows of padding go to experts");
  for (std::int64_t i = 0; i < inputs_.table_updates.size; ++i) {
    const TableUpdate& update = inputs_.table_updates.data[i];
    SIM_CHECK(update.row >= 0 && update.row < padding_row_ && update.first >= 0 &&
                  update.first + update.count <= table_columns_,
              "an update beyond the block tables");
    std::copy_n(inputs_.words + update.source, update.count,
                block_tables_.begin() + update.row * table_columns_ + update.first);
  }
  UpdateAdjustments();
}

void FakeExecutor::UpdateAdjustments() {
  for (std::int64_t i = 0; i < inputs_.adjustment_updates.size; ++i) {
    const TableUpdate& update = inputs_.adjustment_updates.data[i];
    SIM_CHECK(update.row >= 0 && update.row < adjustment_rows_ && update.first >= 0 &&
                  update.first + update.count <= row_adjustments_ * kWordsPerAdjustment,
              "an update beyond the adjustments");
    auto* const words =
        reinterpret_cast<std::uint8_t*>(adjustments_.data() + update.row * row_adjustments_);
    std::memcpy(words + update.first * sizeof(std::int32_t), inputs_.words + update.source,
                update.count * sizeof(std::int32_t));
  }
}

void FakeExecutor::ComputeRow(std::int64_t row, std::int32_t& fault) {
  const std::int32_t block_tokens = config_.tokens_per_block;
  const std::int64_t position = inputs_.positions.data[row];
  const std::int32_t sequence = inputs_.sequences.data[row];
  const std::int32_t* table = block_tables_.data() + sequence * table_columns_;
  std::uint64_t sum = 0;
  for (std::int64_t first = 0; first < position; first += block_tokens) {
    const std::int64_t block = table[first / block_tokens];
    SIM_CHECK(block >= 0, "a block table ends too early");
    SIM_CHECK(block < config_.blocks, "the block of padding is read");
    const std::int64_t count = std::min<std::int64_t>(block_tokens, position - first);
    for (std::int64_t i = 0; i < count; ++i) {
      sum += Weigh(values_[block * block_tokens + i], first + i);
    }
  }
  const std::int64_t own = table[position / block_tokens];
  const std::int64_t slot = inputs_.slots.data[row];
  SIM_CHECK(slot == own * block_tokens + position % block_tokens || sequence == padding_row_,
            "a slot is not where the block table says");
  values_[slot] = ValueOf(sum, inputs_.token_ids.data[row], position);
  fault = TokenId{inputs_.token_ids.data[row]} == config_.poison ? kRowFaultIndexerNan : 0;
}

void FakeExecutor::Sample(const StepOutputs& outputs) {
  for (std::int64_t i = 0; i < inputs_.sample_rows.size; ++i) {
    const std::int32_t row = inputs_.logit_rows.data[inputs_.sample_rows.data[i]];
    const SamplingRow& sampling = inputs_.sampling.data[i];
    SIM_CHECK(sampling.position == inputs_.positions.data[row] + 1,
              "a sample at the wrong position");
    SIM_CHECK(sampling.adjustments_first + sampling.adjustments_count <=
                  static_cast<std::int64_t>(adjustments_.size()),
              "adjustments beyond those that there are");
    const std::span<const LogitAdjustment> adjustments(
        adjustments_.data() + sampling.adjustments_first,
        static_cast<std::size_t>(sampling.adjustments_count));
    std::uint64_t adjusted = 0;
    for (const LogitAdjustment& adjustment : adjustments) {
      adjusted += std::isinf(adjustment.add) ? 0 : Weigh(adjustment);
    }
    const auto is_suppressed = [&](std::int32_t id) {
      return std::any_of(adjustments.begin(), adjustments.end(),
                         [id](const LogitAdjustment& adjustment) {
                           return adjustment.id == id && std::isinf(adjustment.add);
                         });
    };
    const std::uint64_t value = values_[inputs_.slots.data[row]];
    const std::uint64_t noise =
        NoiseOf(sampling.temperature, sampling.seed, sampling.position) ^ adjusted;
    // With the largest addend a token is not drawn.
    const bool given = adjustments.size() == 1 && adjustments.front().add == kGivenAddend;
    const std::int32_t token =
        given ? adjustments.front().id : Draw(config_, value, noise, is_suppressed);
    outputs.tokens.data[i] = token;
    outputs.logprobs.data[i] = given ? LogprobOf(value, token) : -static_cast<float>(token);
    outputs.sample_faults.data[i] = LogitsFaulty(config_, value) ? kRowFaultLogits : 0;
    for (std::int32_t k = 0; k < kTopLogprobsMax; ++k) {
      const bool wanted = k < sampling.top_logprobs;
      outputs.top_ids.Row(i)[k] = wanted ? (token + k) % config_.vocabulary : -1;
      outputs.top_logprobs.Row(i)[k] = -static_cast<float>(k);
    }
  }
}

void FakeExecutor::Launch(const ForwardBatch& batch) {
  if (on_launch) {
    on_launch();
  }
  CheckShape(batch);
  waits_.CheckPlan(*scheduler_, *pool_, writes_.CheckSchedule(batch));
  ++launched_.steps;
  launched_.shape = batch.shape;
  launched_.recorded = batch.recorded;
  launched_.rows = batch.tokens;
  CheckPaths(batch);
  CheckRecorded(batch);
  Upload(batch);
  std::swap(outputs_, before_);
  const StepOutputs& outputs = outputs_.Reset(batch.shape);
  // A real model writes all keys of a layer before any row attends; here, where a value depends on
  // those before it, the rows of a sequence must come by position.
  for (const AttentionPath path : kByPosition) {
    std::int64_t first = 0;
    for (int before = 0; before < static_cast<int>(path); ++before) {
      first += batch.shape.rows[before];
    }
    const std::int64_t end = first + batch.shape.rows[static_cast<std::size_t>(path)];
    for (std::int64_t row = first; row < end; ++row) {
      ComputeRow(row, outputs.row_faults.data[row]);
    }
  }
  Sample(outputs);
}

const StepResult& FakeExecutor::Collect() {
  if (config_.runs_ahead) {
    writes_.DropEnded();
  }
  on_execute_();
  writes_.CheckLanding();
  return outputs_.result();
}

}  // namespace dsa::sim
