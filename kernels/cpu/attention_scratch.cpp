#include "kernels/cpu/attention_scratch.h"

#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/simd.h"

namespace dsa {

AttentionScratch MakeAttentionScratch(const ScratchLimits& limits, ScratchMaker& maker) {
  const auto padded = [](std::int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; };
  AttentionScratch scratch;
  scratch.context_max = limits.context_max;
  scratch.score_stride = padded(limits.context_max);
  scratch.queries = maker.Array<double>(kAttentionHeads * cpu::kLatentRecordValues);
  scratch.keys = maker.Array<float>(kAttentionKeys * cpu::kLatentRecordValues);
  scratch.scores = maker.Array<double>(kAttentionHeads * scratch.score_stride);
  scratch.probabilities = maker.Array<float>(kAttentionHeads * scratch.score_stride);
  scratch.outputs = maker.Array<float>(kAttentionHeads * kLatentValues);

  scratch.index_keys = maker.Array<float>(std::int64_t{kTokensPerBlock} * kIndexerValues);
  scratch.index_queries = maker.Array<float>(kIndexerRows * limits.index_heads * kIndexerValues);
  scratch.index_heads_max = limits.index_heads;
  scratch.selected = maker.Array<std::int32_t>(limits.index_topk);

  scratch.masked_context_max = limits.masked_context_max;
  if (limits.masked_context_max > 0) {
    scratch.key_width = padded(limits.nope + kLatentRopeValues);
    scratch.value_width = padded(limits.value);
    scratch.expanded_keys = maker.Array<float>(limits.masked_context_max * scratch.key_width);
    scratch.expanded_values = maker.Array<float>(limits.masked_context_max * scratch.value_width);
    scratch.weights = maker.Array<float>((limits.nope + limits.value) * kLatentValues);
    scratch.admitted = maker.Array<std::int32_t>(limits.masked_context_max);
  }
  return scratch;
}

}  // namespace dsa
