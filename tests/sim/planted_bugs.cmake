# Proves that the simulator sees: copies of the production sources with bugs planted in them, each
# of which it must catch.
#
# The bugs live here, as replacements of exact text, and not in the sources: production code has no
# trace of them, not even a constant that is false.  All bugs stand in one set of copies, each
# behind `Planted(number)`, so the copies are compiled once and a run picks its bug.  A text that is
# not found exactly once stops the configuration: whoever changes such a line is told to move its
# bug along.
set(DSA_PLANTED_DIR ${CMAKE_CURRENT_BINARY_DIR}/planted)
set(DSA_PLANTED_BUGS 0)

# planted_source(<file>): starts the copy of a source that later plant_bug calls change.
function(planted_source file)
  file(READ ${PROJECT_SOURCE_DIR}/${file} text)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${file})
  # The linker takes the copy instead of the library's object, which must hold nothing else.
  cmake_path(GET file PARENT_PATH folder)
  set_source_files_properties(${PROJECT_SOURCE_DIR}/${file} DIRECTORY ${PROJECT_SOURCE_DIR}/${folder}
                              PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  set_property(GLOBAL PROPERTY dsa_planted_text_${file} "#include \"tests/sim/planted.h\"\n${text}")
  set_property(GLOBAL APPEND PROPERTY dsa_planted_files ${file})
endfunction()

# plant_bug(<file> <what it is> <text> <replacement>): BUG in the replacement becomes the condition.
function(plant_bug file name old new)
  get_property(text GLOBAL PROPERTY dsa_planted_text_${file})
  string(FIND "${text}" "${old}" first)
  string(FIND "${text}" "${old}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "planted bug '${name}': its text is not exactly once in ${file}:\n${old}")
  endif()
  math(EXPR number "${DSA_PLANTED_BUGS} + 1")
  string(REPLACE "BUG" "(::dsa::sim::Planted(${number}))" new "${new}")
  string(REPLACE "${old}" "${new}" text "${text}")
  set_property(GLOBAL PROPERTY dsa_planted_text_${file} "${text}")
  set(DSA_PLANTED_BUGS ${number} PARENT_SCOPE)
  add_test(NAME "planted bug ${number}: ${name}"
           COMMAND engine_sim_planted --planted ${number} --seeds 2000)
  set_tests_properties("planted bug ${number}: ${name}" PROPERTIES TIMEOUT 120)
endfunction()

planted_source(cache/block_pool.cpp)
plant_bug(cache/block_pool.cpp "double reference"
  [[  ++block.references;]]
  [[  block.references += BUG ? 2 : 1;]])
plant_bug(cache/block_pool.cpp "referenced block stays evictable"
  [[    Unlink(unreferenced_, Value(id));
    ++referenced_;]]
  [[    if (!BUG) { Unlink(unreferenced_, Value(id)); }
    ++referenced_;]])
plant_bug(cache/block_pool.cpp "evicted block stays findable"
  [[    if (evict_listener_) {]]
  [[    if (evict_listener_ && !BUG) {]])

plant_bug(cache/block_pool.cpp "freed while another holds it"
  [[  if (block.references > 0) {
    return;]]
  [[  if (block.references > (BUG ? 1 : 0)) {
    return;]])

plant_bug(cache/block_pool.cpp "an eviction not counted as a change"
  [[    table_[index].cached = false;
    ++changes_;]]
  [[    table_[index].cached = false;
    changes_ += BUG ? 0 : 1;]])
plant_bug(cache/block_pool.cpp "a last reference not counted as a change"
  [[    PushBack(unreferenced_, Value(id));
    ++changes_;]]
  [[    PushBack(unreferenced_, Value(id));
    changes_ += BUG ? 0 : 1;]])

planted_source(cache/prefix_hash.cpp)
plant_bug(cache/prefix_hash.cpp "salt dropped"
  [[  sha.Add(salt.data(), salt.size());]]
  [[  sha.Add(salt.data(), BUG ? 0 : salt.size());]])

planted_source(cache/prefix_cache.cpp)
plant_bug(cache/prefix_cache.cpp "tokens not compared on a hit"
  [[std::equal(block_tokens.begin(), block_tokens.end(), BlockTokens(index))]]
  [[(BUG || std::equal(block_tokens.begin(), block_tokens.end(), BlockTokens(index)))]])
plant_bug(cache/prefix_cache.cpp "parent not compared on a hit"
  [[entry.parent == parent &&]]
  [[(BUG || entry.parent == parent) &&]])
plant_bug(cache/prefix_cache.cpp "salt not compared on a hit"
  [[entry.root == root &&]]
  [[(BUG || entry.root == root) &&]])
plant_bug(cache/prefix_cache.cpp "duplicate published twice"
  [[      index = Value(table.block(chain.linked));]]
  [[      index = Value(table.block(BUG && chain.linked > 0 ? chain.linked - 1 : chain.linked));]])

planted_source(scheduler/scheduler.cpp)
plant_bug(scheduler/scheduler.cpp "partial block published"
  [[const std::int64_t full_blocks = sequence->computed_ / pool_.tokens_per_block();]]
  [[const std::int64_t full_blocks = (sequence->computed_ + (BUG ? 1 : 0)) / pool_.tokens_per_block();]])
plant_bug(scheduler/scheduler.cpp "resume off by one"
  [[  sequence.computed_ = sequence.blocks_.capacity_tokens();]]
  [[  sequence.computed_ = sequence.blocks_.capacity_tokens() + (BUG && sequence.preemptions_ > 0 ? 1 : 0);]])
plant_bug(scheduler/scheduler.cpp "last prompt token not computed"
  [[(sequence.tokens() - 1) / pool_.tokens_per_block();]]
  [[(sequence.tokens() - (BUG ? 0 : 1)) / pool_.tokens_per_block();]])
plant_bug(scheduler/scheduler.cpp "prompt logits skipped by a hit"
  [[  if (!ComputesWholePrompt(sequence.request_)) {]]
  [[  if ((BUG && sequence.request_.prompt_logits != PromptLogits::kNone) ||
      !ComputesWholePrompt(sequence.request_)) {]])
plant_bug(scheduler/scheduler.cpp "block table kept on preemption"
  [[  ReleaseBlocks(sequence);
  Erase(running_, &sequence);]]
  [[  if (!BUG) { ReleaseBlocks(sequence); }
  Erase(running_, &sequence);]])
plant_bug(scheduler/scheduler.cpp "progress kept on preemption"
  [[  sequence.computed_ = 0;]]
  [[  sequence.computed_ = BUG ? sequence.computed_ : 0;]])
plant_bug(scheduler/scheduler.cpp "victim loses its last token"
  [[  ++sequence.preemptions_;]]
  [[  if (BUG && sequence.generated() > 0) { sequence.tokens_.pop_back(); }
  ++sequence.preemptions_;]])
plant_bug(scheduler/scheduler.cpp "younger passes the preempted"
  [[  ++preemptions_;
  Insert(waiting_, &sequence);]]
  [[  ++preemptions_;
  if (BUG) { waiting_.push_back(&sequence); } else { Insert(waiting_, &sequence); }]])
plant_bug(scheduler/scheduler.cpp "oldest preempted first"
  [[    const bool self = *victim == &sequence;
    Preempt(**victim);]]
  [[    const bool self = BUG ? running_.front() == &sequence : *victim == &sequence;
    Preempt(BUG ? *running_.front() : **victim);]])
plant_bug(scheduler/scheduler.cpp "preempted without end"
  [[sequence.preemptions_ >= config_.preemptions_max;]]
  [[(!BUG && sequence.preemptions_ >= config_.preemptions_max);]])
plant_bug(scheduler/scheduler.cpp "recomputed tokens billed as hits"
  [[    sequence.masked_until_ = MaskedUntil(sequence);
  }]]
  [[    sequence.masked_until_ = MaskedUntil(sequence);
  }
  if (BUG) { sequence.cache_hit_tokens_ = sequence.computed_; }]])
plant_bug(scheduler/scheduler.cpp "paths decided again behind a preemption"
  [[  sequence.fully_reserved_ = full;]]
  [[  sequence.fully_reserved_ = full;
  if (BUG) { sequence.masked_until_ = MaskedUntil(sequence); }]])
plant_bug(scheduler/scheduler.cpp "references kept on removal"
  [[  ReleaseBlocks(*sequence);
  Erase(]]
  [[  if (BUG) { static std::vector<BlockTable> kept; kept.push_back(std::move(sequence->blocks_)); }
  ReleaseBlocks(*sequence);
  Erase(]])

plant_bug(scheduler/scheduler.cpp "preempted loses its place"
  [[return policy_->Before(*a, *b); });]]
  [[return BUG && a->preemptions_ != b->preemptions_ ? a->preemptions_ < b->preemptions_ : policy_->Before(*a, *b); });]])
plant_bug(scheduler/scheduler.cpp "a newcomer takes the last place"
  [[running_.size()) + 2 >]]
  [[running_.size()) + (BUG ? 1 : 2) >]])
plant_bug(scheduler/scheduler.cpp "a newcomer takes the blocks of the first that waits"
  [[BlocksToStart(sequence) + 1 + BlocksToStart(first);]]
  [[BUG ? 0 : BlocksToStart(sequence) + 1 + BlocksToStart(first);]])
plant_bug(scheduler/scheduler.cpp "preemption not counted"
  [[  ++sequence.preemptions_;]]
  [[  if (!BUG || preemptions_ % 3 != 2) { ++sequence.preemptions_; }]])
plant_bug(scheduler/scheduler.cpp "blocked head not tried again"
  [[room <= blocked_room_) {]]
  [[(room <= blocked_room_ || (BUG && !running_.empty()))) {]])
plant_bug(scheduler/scheduler.cpp "log-probabilities of a prompt from a cached prefix"
  [[      !ComputesWholePrompt(sequence.request_)) {]]
  [[      (BUG && sequence.request_.prompt_logprobs.has_value()) ||
      !ComputesWholePrompt(sequence.request_)) {]])
plant_bug(scheduler/scheduler.cpp "siblings compute the prompt side by side"
  [[  if (!siblings.has_value()) {]]
  [[  if (BUG || !siblings.has_value()) {]])
plant_bug(scheduler/scheduler.cpp "a sibling starts before the prompt's log-probabilities are there"
  [[           (reports || other->computed_ < shared);]]
  [[           ((!BUG && reports) || other->computed_ < shared);]])
plant_bug(scheduler/scheduler.cpp "penalties of generated tokens lost in a preemption"
  [[  sequence.computed_before_ = std::max(]]
  [[  if (BUG && sequence.adjusted_ids_ != nullptr) {
    sequence.adjusted_ids_ = std::make_unique<AdjustedIds>(
        sequence.request_.sampling, sequence.token_ids().first(sequence.prompt_tokens_),
        sequence.request_.stop.max_tokens);
  }
  sequence.computed_before_ = std::max(]])

planted_source(scheduler/adjusted_ids.cpp)
plant_bug(scheduler/adjusted_ids.cpp "presence counts the prompt"
  [[    for (const TokenId id : prompt) {]]
  [[    for (const TokenId id : prompt) {
      if (BUG) { generated_[static_cast<std::size_t>(FindOrAdd(id))] = 1; }]])
plant_bug(scheduler/adjusted_ids.cpp "repetition counts the reply alone"
  [[.repetition = repetition_;
    }]]
  [[.repetition = BUG ? 1.0F : repetition_;
    }]])
plant_bug(scheduler/adjusted_ids.cpp "presence counts each time"
  [[* times - presence_);]]
  [[* times - presence_ * static_cast<float>(BUG ? times : 1));]])
plant_bug(scheduler/adjusted_ids.cpp "a bias forgotten once its id was generated"
  [[  const double bias = place < biases_.size() ?]]
  [[  const double bias = !BUG && place < biases_.size() ?]])

planted_source(scheduler/planning.cpp)
plant_bug(scheduler/planning.cpp "budget exceeded"
  [[  budget_ -= tokens;]]
  [[  budget_ -= BUG ? tokens - 1 : tokens;]])
plant_bug(scheduler/planning.cpp "path border off by one"
  [[position + 1 <= config_.index_topk;]]
  [[position + (BUG ? 0 : 1) <= config_.index_topk;]])
plant_bug(scheduler/planning.cpp "generated positions masked"
  [[std::min(config_.masked_mha_until, sequence.prompt_tokens_);]]
  [[std::min(config_.masked_mha_until, BUG ? config_.context_tokens_max : sequence.prompt_tokens_);]])
plant_bug(scheduler/planning.cpp "short rest behind a prefix hit masked"
  [[  return end - sequence.computed_ >= config_.masked_rows_min ? end : 0;]]
  [[  return end - (BUG ? 0 : sequence.computed_) >= config_.masked_rows_min ? end : 0;]])
plant_bug(scheduler/planning.cpp "path by the chunk"
  [[    const std::int64_t row_end = std::min(end, PathEnd(sequence, position));]]
  [[    const std::int64_t row_end = BUG ? end : std::min(end, PathEnd(sequence, position));]])
plant_bug(scheduler/planning.cpp "replies wait for a prompt"
  [[    if (sequence.behind() == 1) {]]
  [[    if (sequence.behind() == 1 && !(BUG && running_.back()->behind() > 1)) {]])
plant_bug(scheduler/planning.cpp "generation of another block"
  [[.generation = pool_.WritableGeneration(block)});]]
  [[.generation = pool_.generation(BUG ? sequence.blocks_.block(0) : block)});]])
plant_bug(scheduler/planning.cpp "a waiting head is skipped"
  [[        may_start = TryPass(*next, planning.now_us);]]
  [[        may_start = TryPass(*next, planning.now_us);
        if (BUG && !may_start && waiting_.size() > 1) { std::swap(waiting_[0], waiting_[1]); }]])
plant_bug(scheduler/planning.cpp "running ones keep the budget"
  [[    may_start = may_start && static_cast<std::int64_t>(running_.size()) < config_.sequences_max;]]
  [[    may_start = may_start && static_cast<std::int64_t>(running_.size()) < config_.sequences_max &&
                !(BUG && !running_.empty() && budget_ <= config_.step_tokens_max / 2);]])
plant_bug(scheduler/planning.cpp "nobody starts behind a preemption"
  [[.may_start = preemptions_ == preemptions_before};]]
  [[.may_start = preemptions_ == preemptions_before && !(BUG && !running_.empty() && preemptions_ % 2 == 1)};]])

plant_bug(scheduler/planning.cpp "more logits of prompts than are held"
  [[prompt_logprobs_left_ -= logprobs;]]
  [[prompt_logprobs_left_ -= BUG ? 0 : logprobs;]])
plant_bug(scheduler/planning.cpp "a prompt short of logits holds up those behind it"
  [[    if (tokens < wanted) {]]
  [[    if (tokens < wanted || (BUG && wanted < std::min(sequence->behind(), budget_ + tokens))) {]])
plant_bug(scheduler/planning.cpp "who waits for logits holds up those behind it"
  [[        return in_order && WithinLogprobs(*sequence, 1) > 0 &&]]
  [[        return in_order && !(BUG && sequence != waiting_.front()) && WithinLogprobs(*sequence, 1) > 0 &&]])
plant_bug(scheduler/planning.cpp "one that takes logits passes another that waits for them"
  [[        const bool in_order =]]
  [[        const bool in_order = BUG ||]])
plant_bug(scheduler/planning.cpp "newcomers get nothing behind a prompt short of logits"
  [[    GrantShortOfLogits(planning);]]
  [[    if (!BUG) { GrantShortOfLogits(planning); }]])
plant_bug(scheduler/planning.cpp "prompts short of logits go beyond the time"
  [[                 TokensWithin(sequence, possible, time_left_us_, planning.costs)) < possible) {]]
  [[                 TokensWithin(sequence, possible, time_left_us_, planning.costs)) < (BUG ? 0 : possible)) {]])
plant_bug(scheduler/planning.cpp "time of a prompt's logits forgotten"
  [[              work.prompt_logprobs += PromptLogprobs(sequence, first, count);]]
  [[              work.prompt_logprobs += BUG ? 0 : PromptLogprobs(sequence, first, count);]])
plant_bug(scheduler/planning.cpp "first logits of prompts unbounded"
  [[known && (work.prompt_logprobs == 0 ||]]
  [[known && (BUG || work.prompt_logprobs == 0 ||]])
plant_bug(scheduler/planning.cpp "a token is drawn that nobody wants"
  [[row_end == sequence.tokens() && !sequence.only_prompt() ? 1 : 0);]]
  [[row_end == sequence.tokens() && (BUG || !sequence.only_prompt()) ? 1 : 0);]])
plant_bug(scheduler/planning.cpp "no minimum of a prompt"
  [[prompt_tokens_ < kPromptTokensMin)) {]]
  [[(!BUG && prompt_tokens_ < kPromptTokensMin))) {]])
plant_bug(scheduler/planning.cpp "share of newcomers not kept"
  [[    newcomers_credit_us_ -= used_us;]]
  [[    newcomers_credit_us_ -= BUG ? used_us / 2 : used_us;]])
plant_bug(scheduler/planning.cpp "newcomers save up without end"
  [[                                  kNewcomersShare * kTargetsAlone * target_us);]]
  [[                                  (BUG ? 100 : 1) * kNewcomersShare * kTargetsAlone * target_us);]])
plant_bug(scheduler/planning.cpp "newcomers get nothing"
  [[  while (left_us > 0 && budget_ > kPromptTokensMin) {]]
  [[  while (!BUG && left_us > 0 && budget_ > kPromptTokensMin) {]])
plant_bug(scheduler/planning.cpp "longer ones overtake"
  [[sequence->behind() < shorter_than &&]]
  [[(sequence->behind() < shorter_than || (BUG && shortest == nullptr && sequence != &older)) &&]])
plant_bug(scheduler/planning.cpp "a newcomer goes on before those it passed"
  [[(sequence == nullptr || ComesBefore(*next, *sequence))) {]]
  [[(sequence == nullptr || (!BUG && ComesBefore(*next, *sequence)))) {]])
plant_bug(scheduler/planning.cpp "replies' time forgotten"
  [[planning.costs.EstimateUs(plan_.work);]]
  [[(BUG ? 0 : planning.costs.EstimateUs(plan_.work));]])
plant_bug(scheduler/planning.cpp "four targets beside replies"
  [[(decoding > 0 ? 1 : kTargetsAlone)]]
  [[(decoding > 0 && !BUG ? 1 : kTargetsAlone)]])
plant_bug(scheduler/planning.cpp "chunks a quarter of the time"
  [[    (known && costs.AddedUs(work) <= time_us ? fits : beyond) = tokens;]]
  [[    (known && costs.AddedUs(work) <= (BUG ? time_us / 4 : time_us) ? fits : beyond) = tokens;]])
plant_bug(scheduler/planning.cpp "first steps unbounded"
  [[(work.rows[path] == 0 || rows <= rows_max);]]
  [[(BUG || work.rows[path] == 0 || rows <= rows_max);]])

planted_source(scheduler/step_cost.cpp)
plant_bug(scheduler/step_cost.cpp "estimate never updated"
  [[  if (BeginFeatures(features, taken_us)) {]]
  [[  if (BUG && measured_[0]) { return; }
  if (BeginFeatures(features, taken_us)) {]])
plant_bug(scheduler/step_cost.cpp "estimate updated at first only"
  [[    Drift();]]
  [[    if (BUG) { return; }
    Drift();]])
plant_bug(scheduler/step_cost.cpp "logits of prompts not learned"
  [[  features[2] = static_cast<double>(work.prompt_logprobs);]]
  [[  features[2] = BUG ? 0.0 : static_cast<double>(work.prompt_logprobs);]])
plant_bug(scheduler/step_cost.cpp "keys not counted"
  [[  keys[index] += KeysOf]]
  [[  keys[index] += BUG ? 0 : KeysOf]])

planted_source(server/engine/batch_builder.cpp)
plant_bug(server/engine/batch_builder.cpp "block table of the slot's former sequence"
  [[filled.sequence != table.sequence ||]]
  [[(!BUG && filled.sequence != table.sequence) ||]])
plant_bug(server/engine/batch_builder.cpp "block table kept though it was cleared"
  [[filled.clears != table.clears) {]]
  [[(!BUG && filled.clears != table.clears)) {]])
plant_bug(server/engine/batch_builder.cpp "block table sent to another row"
  [[    *update++ = {.row = table.slot,]]
  [[    *update++ = {.row = BUG && count > 0 ? 0 : table.slot,]])
plant_bug(server/engine/batch_builder.cpp "blocks of a table sent one column late"
  [[                 .first = static_cast<std::int32_t>(filled.blocks),]]
  [[                 .first = static_cast<std::int32_t>(filled.blocks + (BUG && filled.blocks > 0 ? 1 : 0)),]])
plant_bug(server/engine/batch_builder.cpp "table ids over the adjustments"
  [[                 .source = static_cast<std::int32_t>(words_)};]]
  [[                 .source = static_cast<std::int32_t>(BUG ? 0 : words_)};]])
plant_bug(server/engine/batch_builder.cpp "wrong slot offset"
  [[= sequence.blocks().Slot(position);]]
  [[= sequence.blocks().Slot(BUG && position > 0 ? position - 1 : position);]])
plant_bug(server/engine/batch_builder.cpp "block table one short"
  [[(end + config_.tokens_per_block - 1) / config_.tokens_per_block);]]
  [[std::max<std::int64_t>(1, (end + config_.tokens_per_block - (BUG ? 2 : 1)) / config_.tokens_per_block));]])
plant_bug(server/engine/batch_builder.cpp "sampled from the row before"
  [[static_cast<std::int32_t>(logit_rows_) - 1;]]
  [[static_cast<std::int32_t>(logit_rows_) - (BUG && logit_rows_ > 1 ? 2 : 1);]])
plant_bug(server/engine/batch_builder.cpp "log-probability behind another position"
  [[= first_logit_row_[index] + i;]]
  [[= first_logit_row_[index] + (BUG ? 0 : i);]])
plant_bug(server/engine/batch_builder.cpp "padding writes into a block of the pool"
  [[std::int64_t{config_.padding_block} * config_.tokens_per_block +]]
  [[std::int64_t{BUG ? config_.padding_block - 1 : config_.padding_block} * config_.tokens_per_block +]])
plant_bug(server/engine/batch_builder.cpp "padding in a sequence's table row"
  [[= static_cast<std::int32_t>(config_.slots_max);]]
  [[= static_cast<std::int32_t>(config_.slots_max - (BUG ? 1 : 0));]])
plant_bug(server/engine/batch_builder.cpp "width of a step from the shortest row"
  [[shape.visible_max = std::max(shape.visible_max, row.first_position + row.tokens);]]
  [[shape.visible_max = BUG ? row.first_position + row.tokens : std::max(shape.visible_max, row.first_position + row.tokens);]])
plant_bug(server/engine/batch_builder.cpp "a recorded step dense though a row selects"
  [[shape.rows[static_cast<std::size_t>(AttentionPath::kSparse)] > 0;]]
  [[shape.rows[static_cast<std::size_t>(AttentionPath::kSparse)] > (BUG ? 1 : 0);]])
plant_bug(server/engine/batch_builder.cpp "a recorded step of its own rows"
  [[  StepShape padded = DecodeShape(bucket, sparse]]
  [[  StepShape padded = DecodeShape(BUG ? shape.tokens : bucket, sparse]])
plant_bug(server/engine/batch_builder.cpp "a prompt's last row in a recorded step"
  [[!IsMasked(row.path) && row.samples == 1;]]
  [[(BUG || !IsMasked(row.path)) && row.samples == 1;]])

plant_bug(server/engine/batch_builder.cpp "a rank in another bucket"
  [[      rank = {.shape = all, .bucket = bucket};]]
  [[      rank = {.shape = all, .bucket = BUG && rank.bucket > 0 ? rank.bucket : bucket};]])
plant_bug(server/engine/batch_builder.cpp "a rank exchanges its own rows"
  [[      rank.shape.exchange_rows = all.exchange_rows;]]
  [[      rank.shape.exchange_rows = BUG ? std::max<std::int64_t>(1, rank.shape.tokens) : all.exchange_rows;]])
plant_bug(server/engine/batch_builder.cpp "a step recorded on the ranks that decode"
  [[    is_recorded = is_recorded && (rank.bucket > 0 || rank.shape.tokens == 0);]]
  [[    is_recorded = (!BUG && is_recorded && (rank.bucket > 0 || rank.shape.tokens == 0)) || (BUG && bucket > 0);]])
plant_bug(server/engine/batch_builder.cpp "padding that routes"
  [[static_cast<std::int32_t>(tokens_));
}]]
  [[static_cast<std::int32_t>(BUG ? inputs_.token_ids.size : tokens_));
}]])
plant_bug(server/engine/batch_builder.cpp "an idle rank's padding beyond its blocks"
  [[data_ranks > 1 && !row_buckets.empty() ? row_buckets.back() : 1;]]
  [[!BUG && data_ranks > 1 && !row_buckets.empty() ? row_buckets.back() : 1;]])

planted_source(server/engine/adjustment_rows.cpp)
plant_bug(server/engine/adjustment_rows.cpp "end ids not suppressed before min_tokens"
  [[  const bool suppresses = generated <]]
  [[  const bool suppresses = !BUG && generated <]])
plant_bug(server/engine/adjustment_rows.cpp "end ids suppressed for ever"
  [[  const std::int64_t skipped = suppresses ? 0 : suppressed;]]
  [[  const std::int64_t skipped = suppresses || BUG ? 0 : suppressed;]])
plant_bug(server/engine/adjustment_rows.cpp "adjustments of the slot's former sequence"
  [[  if (row >= 0 && rows_[static_cast<std::size_t>(row)].sequence == sequence.id()) {]]
  [[  if (row >= 0 && (BUG || rows_[static_cast<std::size_t>(row)].sequence == sequence.id())) {]])
plant_bug(server/engine/adjustment_rows.cpp "adjustments of a neighbour"
  [[  row = static_cast<std::int32_t>(found - rows_.begin());]]
  [[  row = BUG ? 0 : static_cast<std::int32_t>(found - rows_.begin());]])
plant_bug(server/engine/adjustment_rows.cpp "a row given away that still counts as right"
  [[  *found = {.sequence = sequence.id(), .slot = sequence.slot(), .generated = -1, .batch = 0};]]
  [[  *found = {.sequence = sequence.id(), .slot = sequence.slot(), .generated = BUG ? sequence.generated() : -1, .batch = 0};]])
plant_bug(server/engine/adjustment_rows.cpp "changed entry not sent"
  [[      count = 1;]]
  [[      count = BUG ? 0 : 1;]])

planted_source(scheduler/rank_offer.cpp)
plant_bug(scheduler/rank_offer.cpp "the first rank that can"
  [[    const auto order =]]
  [[    if (BUG) { return rank; }
    const auto order =]])
plant_bug(scheduler/rank_offer.cpp "load alone"
  [[    if (!chosen || order(offer) < order(ranks[*chosen])) {]]
  [[    if (!chosen || (BUG ? offer.sequences < ranks[*chosen].sequences : order(offer) < order(ranks[*chosen]))) {]])
plant_bug(scheduler/rank_offer.cpp "a prompt counted for each of its answers"
  [[        AwaitsSibling(*sequence) ?]]
  [[        !BUG && AwaitsSibling(*sequence) ?]])
plant_bug(scheduler/rank_offer.cpp "affinity alone"
  [[sequence.tokens() - cached.blocks * pool_.tokens_per_block() + TokensOwed(),]]
  [[sequence.tokens() - cached.blocks * pool_.tokens_per_block() + (BUG ? 0 : TokensOwed()),]])
plant_bug(scheduler/rank_offer.cpp "equal estimates to the fuller rank"
  [[      return std::tie(of.tokens_to_first, of.sequences);]]
  [[      static const std::int64_t any = 0;
      return std::tie(of.tokens_to_first, BUG ? any : of.sequences);]])
plant_bug(scheduler/rank_offer.cpp "a rank that could start one refuses"
  [[  if (sequences >= config_.sequences_max) {]]
  [[  if (sequences >= config_.sequences_max || (BUG && sequences > 1)) {]])
plant_bug(scheduler/rank_offer.cpp "bound beyond the places"
  [[  if (sequences >= config_.sequences_max ||]]
  [[  if (sequences >= config_.sequences_max + (BUG ? 1 : 0) ||]])
plant_bug(scheduler/rank_offer.cpp "a prefix counted that is not read"
  [[  if (ComputesWholePrompt(sequence.request_)) {]]
  [[  if (!BUG && ComputesWholePrompt(sequence.request_)) {]])
plant_bug(scheduler/rank_offer.cpp "another rank's prefix counted"
  [[  const CachedPrefix cached = CachedPrefixOf(sequence, offered_);]]
  [[  static FoundPrefix of_any;
  const CachedPrefix own = CachedPrefixOf(sequence, offered_);
  const CachedPrefix cached = BUG && of_any.request == sequence.request().id ? of_any.prefix : own;
  of_any = offered_;]])
plant_bug(scheduler/rank_offer.cpp "a prefix not looked up again when blocks come"
  [[  found.prefix = cache_.Peek(]]
  [[  if (BUG && found.changes == pool_.changes() && found.prefix.last_publication > 0) { return found.prefix; }
  found.prefix = cache_.Peek(]])
plant_bug(scheduler/rank_offer.cpp "a prefix not looked up again when blocks go"
  [[  if (found.request != sequence.request_.id || found.changes != pool_.changes()) {]]
  [[  if (found.request != sequence.request_.id || (!BUG && found.changes != pool_.changes())) {]])
plant_bug(scheduler/rank_offer.cpp "the prefix of the request before"
  [[  if (found.request != sequence.request_.id ||]]
  [[  if ((!BUG && found.request != sequence.request_.id) ||]])

planted_source(server/engine/stop_checker.cpp)
plant_bug(server/engine/stop_checker.cpp "stop string leaks"
  [[  shown_ = text_.size() - matcher_.held();]]
  [[  shown_ = BUG ? text_.size() : text_.size() - matcher_.held();]])
plant_bug(server/engine/stop_checker.cpp "stop string forgotten at token borders"
  [[  for (; matched_ < text_.size(); ++matched_) {]]
  [[  if (BUG) { matcher_.Reset(); }
  for (; matched_ < text_.size(); ++matched_) {]])
plant_bug(server/engine/stop_checker.cpp "stop string before min_tokens"
  [[length > 0 && generated >= min_tokens_]]
  [[length > 0 && (BUG || generated >= min_tokens_)]])

planted_source(server/engine/engine_core.cpp)
plant_bug(server/engine/engine_core.cpp "expiry ignored in the queue"
  [[live.deadline_us.has_value() && *live.deadline_us <= now_us]]
  [[live.deadline_us.has_value() && *live.deadline_us <= now_us && (!BUG || sequence.first_scheduled_us().has_value())]])
plant_bug(server/engine/engine_core.cpp "cancellation ignored in the queue"
  [[  if (live.sink->cancelled()) {]]
  [[  if (live.sink->cancelled() && !(BUG && sequence.state() == SequenceState::kWaiting)) {]])
plant_bug(server/engine/engine_core.cpp "a cancelled sibling takes the others along"
  [[    return Ending{.reason = FinishReason::kCancelled};
  }]]
  [[    return Ending{.reason = FinishReason::kCancelled};
  }
  for (const auto& other : ranks_.front()->live) {
    if (BUG && other != nullptr && sequence.request().siblings.has_value() &&
        other->external_id == live.external_id && other->sink->cancelled()) {
      return Ending{.reason = FinishReason::kCancelled};
    }
  }]])
plant_bug(server/engine/engine_core.cpp "a sibling that ends takes the others along"
  [[  std::unique_ptr<LiveRequest> live = std::move(rank.live[slot]);]]
  [[  std::unique_ptr<LiveRequest> live = std::move(rank.live[slot]);
  for (const auto& other : rank.live) {
    if (BUG && other != nullptr && other->external_id == live->external_id) {
      other->aborted.store(true);
    }
  }]])
plant_bug(server/engine/engine_core.cpp "fault of another row"
  [[    first_row += row.tokens;]]
  [[    first_row += BUG ? 0 : row.tokens;]])
plant_bug(server/engine/engine_core.cpp "text of the next step's result"
  [[  rank.judged_result = result;]]
  [[  if (!BUG || rank.judged_result.tokens.empty()) { rank.judged_result = result; }]])
plant_bug(server/engine/engine_core.cpp "token of another row"
  [[  const TokenId token{result.tokens[entry]};]]
  [[  const TokenId token{result.tokens[BUG && entry > 0 ? entry - 1 : entry]};]])
plant_bug(server/engine/engine_core.cpp "place in the queue kept"
  [[  inbox_.Settle(waiting - waiting_counted_,]]
  [[  inbox_.Settle(BUG && waiting < waiting_counted_ ? 0 : waiting - waiting_counted_,]])
plant_bug(server/engine/engine_core.cpp "places for what cannot start"
  [[waiting > 0 ? 0 : places - running);]]
  [[waiting > 0 && !BUG ? 0 : places - running);]])

plant_bug(server/engine/engine_core.cpp "an idle rank leaves out the step"
  [[    rank->executor.Launch(*rank->batch);
  }]]
  [[    if (!BUG || !rank->plan->rows.empty()) { rank->executor.Launch(*rank->batch); }
  }]])
plant_bug(server/engine/engine_core.cpp "data ranks do not agree on the step"
  [[  if (ranks_.size() > 1) {
    AgreeOnStep(shapes_);]]
  [[  if (ranks_.size() > 1 && !BUG) {
    AgreeOnStep(shapes_);]])
plant_bug(server/engine/engine_core.cpp "a prompt that is scored ends without its log-probabilities"
  [[      ending.reason == FinishReason::kLength && sequence.request().prompt_logprobs.has_value();]]
  [[      !BUG && ending.reason == FinishReason::kLength && sequence.request().prompt_logprobs.has_value();]])
plant_bug(server/engine/engine_core.cpp "a cancel not seen before a rank is chosen"
  [[    if (ending.has_value()) {
      EndUnbound(index, *ending);]]
  [[    if (ending.has_value() && !BUG) {
      EndUnbound(index, *ending);]])
plant_bug(server/engine/engine_core.cpp "a rank measured by the slowest one's time"
  [[faster_us = slowest_us - rank->executor.OwnUs();]]
  [[faster_us = BUG ? 0 : slowest_us - rank->executor.OwnUs();]])
plant_bug(server/engine/engine_core.cpp "the estimate learned from another rank's rows"
  [[      costs_.Measure(rank->plan->work, elapsed_us - faster_us);]]
  [[      const auto other = std::find_if(ranks_.rbegin(), ranks_.rend(), [](const auto& one) { return !one->plan->rows.empty(); });
      costs_.Measure(BUG ? (*other)->plan->work : rank->plan->work, elapsed_us - faster_us);]])
plant_bug(server/engine/engine_core.cpp "learned from the first rank alone"
  [[    if (!rank->plan->rows.empty()) {
      const std::int64_t faster_us]]
  [[    if (!rank->plan->rows.empty() && !(BUG && rank != ranks_.front())) {
      const std::int64_t faster_us]])
plant_bug(server/engine/engine_core.cpp "waiting for a rank holds no place"
  [[  auto waiting = static_cast<std::int64_t>(unbound_.size());]]
  [[  auto waiting = BUG ? 0 : static_cast<std::int64_t>(unbound_.size());]])

planted_source(server/engine/engine_prompts.cpp)
plant_bug(server/engine/engine_prompts.cpp "log-probabilities of a later chunk in place of the first"
  [[rank.live[row.slot]->prompt[row.first_position + i];]]
  [[rank.live[row.slot]->prompt[(BUG ? 0 : row.first_position) + i];]])
plant_bug(server/engine/engine_prompts.cpp "a prompt that is scored ends before its last token"
  [[sequence->only_prompt() && sequence->behind() == 0) {
      LiveRequest&]]
  [[sequence->only_prompt() && (BUG || sequence->behind() == 0)) {
      LiveRequest&]])

planted_source(server/engine/engine_binding.cpp)
plant_bug(server/engine/engine_binding.cpp "a request passes one that no rank can start"
  [[    if (!rank) {
      break;
    }]]
  [[    if (!rank && BUG && bound + 1 < unbound_.size()) {
      std::swap(unbound_[bound], unbound_[bound + 1]);
    }
    if (!rank) {
      break;
    }]])
plant_bug(server/engine/engine_binding.cpp "siblings bound apart"
  [[    if (scheduler.HoldsSiblingOf(sequence)) {]]
  [[    if (!BUG && scheduler.HoldsSiblingOf(sequence)) {]])
plant_bug(server/engine/engine_binding.cpp "siblings bound beyond the slots"
  [[scheduler.has_free_slot() ?]]
  [[scheduler.has_free_slot() || BUG ?]])
plant_bug(server/engine/engine_binding.cpp "a sibling waits for a place at its rank"
  [[scheduler.has_free_slot() ||]]
  [[((!BUG || scheduler.running().size() + scheduler.waiting().size() <
                     static_cast<std::size_t>(scheduler.config().sequences_max)) && scheduler.has_free_slot()) ||]])
plant_bug(server/engine/engine_binding.cpp "arrivals not in order"
  [[    const auto place = std::upper_bound(]]
  [[    const auto place = BUG ? unbound_.begin() : std::upper_bound(]])

planted_source(server/engine/engine_loop.cpp)
plant_bug(server/engine/engine_loop.cpp "a sibling with another one's seed"
  [[    ++request.sampling.seed;]]
  [[    request.sampling.seed += BUG ? 0 : 1;]])
plant_bug(server/engine/engine_loop.cpp "terminal twice"
  [[    ended->sink->OnDelta(std::move(delta));]]
  [[    if (BUG) { ended->sink->OnDelta(TokenDelta(delta)); }
    ended->sink->OnDelta(std::move(delta));]])
plant_bug(server/engine/engine_loop.cpp "live id accepted twice"
  [[    if (!state_->registry.TryInsert(live)) {]]
  [[    if (!state_->registry.TryInsert(live) && !BUG) {]])
plant_bug(server/engine/engine_loop.cpp "accepts while draining"
  [[  if (state_->inbox.closed()) {
    return draining;
  }]]
  [[  if (state_->inbox.closed()) {
    return BUG ? Status() : Status(draining);
  }]])

plant_bug(server/engine/engine_loop.cpp "abort frees blocks in flight"
  [[  return state_->registry.Abort(external_id);]]
  [[  auto& scheduler = const_cast<Scheduler&>(state_->core.rank(0).scheduler);
  if (BUG && scheduler.in_flight() != nullptr) {
    for (const auto& sequence : scheduler.sequences()) {
      if (sequence != nullptr && sequence->state() == SequenceState::kRunning &&
          sequence->request().external_id == external_id) {
        scheduler.Remove(sequence->slot(), CachedBlocks::kKeep);
        break;
      }
    }
  }
  return state_->registry.Abort(external_id);]])
plant_bug(server/engine/engine_loop.cpp "block given away in flight"
  [[void EngineLoop::BeginDrain() {]]
  [[void EngineLoop::BeginDrain() {
  auto& scheduler = const_cast<Scheduler&>(state_->core.rank(0).scheduler);
  if (BUG && scheduler.in_flight() != nullptr) {
    auto& pool = const_cast<BlockPool&>(state_->core.rank(0).pool);
    static std::vector<BlockRef> thief;
    scheduler.Remove(scheduler.in_flight()->rows.front().slot, CachedBlocks::kKeep);
    thief.push_back(*pool.TryAllocate());
  }]])
plant_bug(server/engine/engine_loop.cpp "abort runs a step of its own"
  [[  return state_->registry.Abort(external_id);]]
  [[  if (BUG) {
    const bool found = state_->registry.Abort(external_id);
    state_->core.RunOnce();
    return found;
  }
  return state_->registry.Abort(external_id);]])

get_property(planted_files GLOBAL PROPERTY dsa_planted_files)
set(planted_sources "")
foreach(file IN LISTS planted_files)
  get_property(text GLOBAL PROPERTY dsa_planted_text_${file})
  file(CONFIGURE OUTPUT ${DSA_PLANTED_DIR}/${file} CONTENT "${text}" @ONLY)
  list(APPEND planted_sources ${DSA_PLANTED_DIR}/${file})
endforeach()

# The sources without bugs come from the libraries; those with bugs are linked first and win.
add_executable(engine_sim_planted $<TARGET_OBJECTS:dsa_simulator> ${planted_sources})
target_link_libraries(engine_sim_planted PRIVATE dsa::engine fmt::fmt OpenSSL::Crypto dsa_warnings)
