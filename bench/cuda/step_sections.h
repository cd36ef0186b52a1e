// A step taken apart: which op of the step belongs to which section, what each section has
// to move and to compute at least, and a backend that queues one section alone.  One thread.
#pragma once

#include "bench/cuda/device_bench.h"
#include "kernels/forwarding_backend.h"
#include "server/step_times.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dsa::bench {

using Section = StepSection;  // what predictions are made from
// In the order of the sections.
inline constexpr std::array<std::string_view, kStepSections> kSectionNames = {
    "embed, gather rows",
    "add, norm, fp8 copy",
    "project q_a, wk, kv_a, weights",
    "write keys",
    "project q_b, wq_b",
    "select keys",
    "attend",
    "project o",
    "dense mlp",
    "experts",
    "head",
    "sample"};

// Least work of a section's calls, summed.
struct SectionWork {
  int calls = 0;
  double bytes = 0.0;
  double fp8_flops = 0.0;
  double bf16_flops = 0.0;
};

// Keys of a step.
struct StepKeys {
  double visible;   // that a row sees, in the mean
  double distinct;  // that the step reads
};

// Passes the ops of a step on, fused ones included, where they belong to the section that is
// wanted, and leaves the others out.
class SectionBackend final : public ForwardingBackend {
 public:
  SectionBackend(Backend& inner, const CardCeilings& ceilings, const StepKeys& keys)
      : ForwardingBackend(inner), ceilings_(ceilings), keys_(keys) {}

  // From now on this section alone, or all of them; work is counted from nothing.
  void Want(std::optional<Section> section) {
    wanted_ = section;
    works_ = {};
    floors_us_ = {};
  }
  const SectionWork& work(Section section) const { return works_.at(Index(section)); }
  // The sum over the section's calls of max(bytes / copy, FLOPs / peak).
  double floor_us(Section section) const { return floors_us_.at(Index(section)); }

  void Embed(const EmbedParams& params) override;
  void GatherRows(const GatherRowsParams& params) override;
  void Sample(const SampleParams& params) override;
  void AddNorm(const AddNormParams& params) override;
  void Project(const ProjectParams& params) override;
  void WriteKeys(const WriteKeysParams& params) override;
  void SelectKeys(const SelectKeysParams& params) override;
  void AttendLatent(const AttendLatentParams& params) override;
  void AttendMasked(const AttendMaskedParams& params) override;
  void GatedMlp(const GatedMlpParams& params) override;
  void ExpertMlp(const ExpertMlpParams& params) override;

 private:
  static std::size_t Index(Section section) { return static_cast<std::size_t>(section); }
  // Counts the work; whether to queue it.
  bool Takes(Section section, const SectionWork& work);

  CardCeilings ceilings_;
  StepKeys keys_;
  std::optional<Section> wanted_;
  std::array<SectionWork, kStepSections> works_{};
  std::array<double, kStepSections> floors_us_{};
};

}  // namespace dsa::bench
