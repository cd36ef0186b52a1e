#include "kernels/cpu/scratch.h"

#include "common/check.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <new>

namespace dsa {
namespace {

ExpertScratch MakeExpertScratch(const ScratchLimits& limits, ScratchMaker& maker) {
  const std::int64_t pairs = limits.tokens_max * limits.experts_per_token;
  ExpertScratch scratch;
  scratch.offsets = maker.Array<std::int32_t>(limits.experts + 1);
  scratch.pairs = maker.Array<std::int32_t>(pairs);
  scratch.tokens = maker.Array<std::int32_t>(pairs);
  scratch.inputs = maker.Array<std::byte>(limits.tokens_max * limits.hidden);
  scratch.input_scales = maker.Array<float>(limits.tokens_max * Fp8Blocks(limits.hidden));
  scratch.gate = maker.Array<float>(pairs * limits.expert_width);
  scratch.up = maker.Array<float>(pairs * limits.expert_width);
  scratch.inner = maker.Array<std::byte>(pairs * limits.expert_width);
  scratch.inner_scales = maker.Array<float>(pairs * Fp8Blocks(limits.expert_width));
  const std::int64_t contribution_floats = limits.expert_sum_type == DataType::kF64 ? 2 : 1;
  scratch.contributions = maker.Array<float>(pairs * limits.hidden * contribution_floats);
  scratch.gate_logits = maker.Array<float>(limits.tokens_max * limits.experts);
  return scratch;
}

SampleScratch MakeSampleScratch(const ScratchLimits& limits, ScratchMaker& maker) {
  SampleScratch scratch;
  scratch.logits = maker.Array<float>(limits.vocabulary);
  scratch.weights = maker.Array<double>(limits.vocabulary);
  scratch.order = maker.Array<std::int32_t>(limits.vocabulary);
  return scratch;
}

std::unique_ptr<CpuScratch> FillCpuScratch(const ScratchLimits& limits, int threads,
                                           ScratchMaker& maker) {
  auto scratch = std::make_unique<CpuScratch>();
  scratch->limits = limits;
  const std::int64_t inputs_max =
      std::max({limits.linear_width_max, limits.hidden, limits.expert_width});
  for (int thread = 0; thread < threads; ++thread) {
    scratch->rows.push_back(maker.Array<float>(inputs_max));
    scratch->matmul.push_back(MakeMatmulScratch(inputs_max, maker));
    scratch->gate.push_back({.biased = maker.Array<float>(limits.experts),
                             .group_scores = maker.Array<float>(limits.experts)});
    scratch->sample.push_back(MakeSampleScratch(limits, maker));
    scratch->attention.push_back(MakeAttentionScratch(limits, maker));
  }
  scratch->experts = MakeExpertScratch(limits, maker);
  return scratch;
}

}  // namespace

namespace scratch_internal {

constexpr std::align_val_t kAlignment{64};

void* Allocate(std::size_t bytes) {
  return ::operator new(bytes, kAlignment);
}

void Release(void* data) {
  ::operator delete(data, kAlignment);
}

}  // namespace scratch_internal

float* CpuScratch::Row(int thread, std::int64_t width) const {
  const ScratchArray<float>& row = rows[static_cast<std::size_t>(thread)];
  DSA_CHECK(width <= row.size(), "CpuBackend: a row of {} values, scratch is for {}", width,
            row.size());
  return row.data();
}

std::int64_t CpuScratchBytes(const ScratchLimits& limits, int threads) {
  ScratchMaker maker(ScratchMaker::Mode::kMeasure);
  FillCpuScratch(limits, threads, maker);
  return maker.bytes();
}

std::unique_ptr<CpuScratch> MakeCpuScratch(const ScratchLimits& limits, int threads) {
  ScratchMaker maker(ScratchMaker::Mode::kAllocate);
  return FillCpuScratch(limits, threads, maker);
}

}  // namespace dsa
