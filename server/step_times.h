// What the parts of a step took where they were measured, and what GPUs and collectives can do:
// the table that predictions are made from (server/step_prediction.h).  Every number is a measured
// one; its file stands beside it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace dsa {

// In the order of a step.  dsa_step_bench measures the same ones.
enum class StepSection : std::uint8_t {
  kEmbed,  // and gather rows
  kAddNorm,
  kInputProjection,
  kWriteKeys,
  kQueryProjection,
  kSelectKeys,
  kAttend,
  kOutputProjection,
  kDenseMlp,
  kExperts,
  kHead,
  kSample,
};
inline constexpr std::size_t kStepSections = 12;

// A step of a slice of DeepSeek-V3.2 (configs/models/deepseek-v32), with so many routed experts of
// which each row chooses 8.
struct MeasuredStep {
  bool is_prefill;            // rows of one sequence, else of one each
  std::int64_t rows;          // of which a prefill's last one alone has logits
  std::int64_t visible;       // keys that a row sees; of a prefill's rows the last one
  std::int64_t tensor_ranks;  // heads, widths and vocabulary are those of one of so many
  std::int64_t experts;
  double experts_hit;                         // of a layer, in the mean
  double beyond_sections;                     // the step over the sum of its sections
  std::array<double, kStepSections> call_us;  // of one call of each section
};

// A collective of two GPUs, one of a recorded chain.
struct MeasuredCollective {
  std::int64_t rows;
  double us;
};

struct GpuTimes {
  std::string_view name;
  // Of a large copy and of products of 8192 x 8192 x 8192.
  double copy_bytes_per_us;  // read and written together
  double fp8_flops_per_us;
  double bf16_flops_per_us;
  std::span<const MeasuredStep> decode;
  std::span<const MeasuredStep> prefill;
  // null: nobody's.  Else its prefill is taken, by its kernels' shares of what that GPU can do, and
  // of decode what a size does not change of sections that were measured at one size alone.
  const GpuTimes* borrows_from;
};

std::span<const GpuTimes> MeasuredGpus();

// Of H100s and H200s, whose links are the same.
std::span<const MeasuredCollective> MeasuredAllReduces();  // [rows, 7168] float32 to bfloat16
std::span<const MeasuredCollective> MeasuredAllGathers();  // [rows, 129280] float32, half from each
// Dispatch and Combine together, of so many rows of 7168 bfloat16 on each GPU, each to 8 experts.
std::span<const MeasuredCollective> MeasuredExchanges();

}  // namespace dsa
