#include "kernels/ops/sample.h"

#include "kernels/ops/validate.h"

namespace dsa {

SampleExtents Validate(const SampleParams& params) {
  ShapeBinder shapes("Sample");
  const auto [logit_rows, vocabulary] = shapes.Match("logits", params.logits, "L", "V");
  const auto [rows] = shapes.Match("logit_rows", params.logit_rows, "R");
  shapes.Match("rows", params.rows, "R");
  shapes.Match("tokens", params.tokens, "R");
  shapes.Match("logprobs", params.logprobs, "R");
  const auto [top_rows, top] = shapes.Match("top_ids", params.top_ids, "R", "top");
  shapes.Match("top_logprobs", params.top_logprobs, "R", "top");
  shapes.Match("faults", params.faults, "R");
  DSA_CHECK(top == kTopLogprobsMax, "Sample: top_ids is [{}, {}], expected {} columns", top_rows,
            top, kTopLogprobsMax);
  DSA_CHECK(rows == 0 || logit_rows > 0, "Sample: {} rows of {} logit rows", rows, logit_rows);
  constexpr std::int64_t kMaskBits = 64;
  DSA_CHECK(params.masks.rows == 0 || params.masks.cols == (vocabulary + kMaskBits - 1) / kMaskBits,
            "Sample: masks is [{}, {}] for V={}", params.masks.rows, params.masks.cols, vocabulary);
  DSA_CHECK(params.vocabulary_limit >= 1 && params.vocabulary_limit <= vocabulary,
            "Sample: vocabulary_limit={} of V={}", params.vocabulary_limit, vocabulary);
  return {.rows = rows, .vocabulary = vocabulary};
}

}  // namespace dsa
