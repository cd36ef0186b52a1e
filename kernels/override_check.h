// Holds every override of a fused op to its default body.
//
// A backend that runs each fused op twice on the same operands: as the backend under test has it,
// and by its default body, plain op by plain op of the same backend.  What both have written is
// compared, and what the default body wrote stays, so that one fault does not hide behind another.
// For tests and the start-up self-test; it copies what an op writes to the host and so takes time.
#pragma once

#include "kernels/forwarding_backend.h"
#include "kernels/written_values.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// One output of a fused op, over all calls so far.
struct OverrideDifference {
  std::string op;  // "AttendLatent"
  std::string output;
  double relative_error;  // ||override - default|| / ||default||; infinite where bytes differ or a
                          // value is finite on one side only
  double unequal = 0.0;   // the largest share of bytes that differ where they must be equal
};

class OverrideCheck final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void AddNorm(const AddNormParams& params) override;
  void Project(const ProjectParams& params) override;
  void WriteKeys(const WriteKeysParams& params) override;
  void SelectKeys(const SelectKeysParams& params) override;
  void AttendLatent(const AttendLatentParams& params) override;
  void AttendMasked(const AttendMaskedParams& params) override;
  void GatedMlp(const GatedMlpParams& params) override;
  void ExpertMlp(const ExpertMlpParams& params) override;

  // The largest difference of each output that was compared, in order of op and output.
  std::vector<OverrideDifference> Differences() const;
  // Those above `tolerance`.
  std::vector<OverrideDifference> Faults(double tolerance) const;

 private:
  template <typename Params>
  void Compare(std::string_view op, void (Backend::*method)(const Params&), const Params& params,
               void (*run_default)(OverrideCheck&, const Params&));
  WrittenList Written(const AddNormParams& params);
  WrittenList Written(const ProjectParams& params);
  WrittenList Written(const WriteKeysParams& params);
  WrittenList Written(const SelectKeysParams& params);
  WrittenList Written(const AttendLatentParams& params);
  WrittenList Written(const AttendMaskedParams& params);
  WrittenList Written(const GatedMlpParams& params);
  WrittenList Written(const ExpertMlpParams& params);

  std::map<std::string, OverrideDifference> differences_;  // by "op output"
};

}  // namespace dsa
