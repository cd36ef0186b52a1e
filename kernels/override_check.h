// Holds every override of a fused op to its default body.
//
// A backend that runs each fused op twice on the same operands: as the backend under test has it,
// and by its default body, plain op by plain op of the same backend.  What both have written is
// compared, and what the default body wrote stays, so that one fault does not hide behind another.
// For tests and the start-up self-test; it copies what an op writes to the host and so takes time.
#pragma once

#include "kernels/forwarding_backend.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// Some memory that an op writes: `count` values one behind the other.
struct WrittenValues {
  enum class Kind : std::uint8_t { kF32, kBf16, kFp8E4m3, kBytes };

  const char* name;  // one for all pieces of an output
  void* data;
  std::int64_t count;
  Kind kind;  // kBytes must be equal, the others near
};

// One output of a fused op, over all calls so far.
struct OverrideDifference {
  std::string op;  // "AttendLatent"
  std::string output;
  double relative_error;  // ||override - default|| / ||default||; infinite where bytes differ or a
                          // value is finite on one side only
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
  using Bytes = std::vector<std::vector<std::byte>>;

  template <typename Params>
  void Compare(std::string_view op, void (Backend::*method)(const Params&), const Params& params,
               void (*run_default)(OverrideCheck&, const Params&));
  Bytes ReadBack(const std::vector<WrittenValues>& written);
  void Restore(const std::vector<WrittenValues>& written, const Bytes& bytes);
  std::vector<WrittenValues> Written(const AddNormParams& params);
  std::vector<WrittenValues> Written(const ProjectParams& params);
  std::vector<WrittenValues> Written(const WriteKeysParams& params);
  std::vector<WrittenValues> Written(const SelectKeysParams& params);
  std::vector<WrittenValues> Written(const AttendLatentParams& params);
  std::vector<WrittenValues> Written(const AttendMaskedParams& params);
  std::vector<WrittenValues> Written(const GatedMlpParams& params);
  std::vector<WrittenValues> Written(const ExpertMlpParams& params);

  std::map<std::string, OverrideDifference> differences_;  // by "op output"
};

}  // namespace dsa
