#include "tests/model/damaged_device.h"

#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/op_trace.h"

#include <cstddef>
#include <string_view>
#include <utility>

namespace dsa::testing {
namespace {

// Changes the sign of every value, and a bit of every id.
void Damage(Backend& backend, const WrittenList& written) {
  WrittenBytes bytes = ReadBack(backend, written);
  for (std::size_t piece = 0; piece < written.size(); ++piece) {
    const bool is_exact = written[piece].kind == WrittenValues::Kind::kBytes;
    const auto count = static_cast<std::size_t>(written[piece].count);
    const std::size_t size = count == 0 ? 1 : bytes[piece].size() / count;
    for (std::size_t i = size - 1; i < bytes[piece].size(); i += size) {
      bytes[piece][i] ^= is_exact ? std::byte{0x01} : std::byte{0x80};
    }
  }
  PutBack(backend, written, bytes);
}

struct Owner {
  std::unique_ptr<Backend> device;
};

// A device whose plain op `fault` is wrong.
class DamagedOp final : private Owner, public WatchingBackend {
 public:
  DamagedOp(std::unique_ptr<Backend> inner, std::string fault)
      : Owner{std::move(inner)}, WatchingBackend(*device), fault_(std::move(fault)) {}

 private:
  void OnWritten(std::string_view op, const WrittenList& written) override {
    if (op == fault_) {
      Damage(inner_, written);
    }
  }
  const std::string fault_;
};

// A device with overrides, of which `fault` is wrong; AttendLatent past top-k alone.
class DamagedOverride final : private Owner, public ForwardingBackend {
 public:
  DamagedOverride(std::unique_ptr<Backend> inner, std::string fault)
      : Owner{std::move(inner)}, ForwardingBackend(*device), fault_(std::move(fault)) {}

  void AddNorm(const AddNormParams& params) override {
    Backend::AddNorm(params);
    WrittenList written;
    AddActivation(written, "y", params.y);
    DamageAfter("AddNorm", written);
  }
  void Project(const ProjectParams& params) override {
    Backend::Project(params);
    WrittenList written;
    AddMatrix(written, "y", params.projections[0].y);
    DamageAfter("Project", written);
  }
  void WriteKeys(const WriteKeysParams& params) override {
    Backend::WriteKeys(params);
    WrittenList written;
    AddLatents(written, inner_, params.latent.cache, params.latent.slots);
    DamageAfter("WriteKeys", written);
  }
  void SelectKeys(const SelectKeysParams& params) override {
    Backend::SelectKeys(params);
    WrittenList written;
    AddExact(written, "slots", params.slots);
    AddExact(written, "mask", params.mask);
    DamageAfter("SelectKeys", written);
  }
  void AttendLatent(const AttendLatentParams& params) override {
    AttendLatentParams changed = params;
    if (fault_ == "AttendLatent") {
      changed.attend.selection = {};  // as if every key had been selected
    }
    Backend::AttendLatent(changed);
  }
  void AttendMasked(const AttendMaskedParams& params) override {
    Backend::AttendMasked(params);
    WrittenList written;
    AddMatrix(written, "o", params.attend.o.x);
    DamageAfter("AttendMasked", written);
  }
  void GatedMlp(const GatedMlpParams& params) override {
    Backend::GatedMlp(params);
    WrittenList written;
    AddMatrix(written, "y", params.y);
    DamageAfter("GatedMlp", written);
  }
  void ExpertMlp(const ExpertMlpParams& params) override {
    Backend::ExpertMlp(params);
    WrittenList written;
    AddMatrix(written, "y", params.routed.y);
    DamageAfter("ExpertMlp", written);
  }

 private:
  void DamageAfter(std::string_view op, const WrittenList& written) {
    if (op == fault_) {
      Damage(inner_, written);
    }
  }
  const std::string fault_;
};

}  // namespace

std::unique_ptr<Backend> WithDamagedOp(std::unique_ptr<Backend> inner, std::string fault) {
  return std::make_unique<DamagedOp>(std::move(inner), std::move(fault));
}

std::unique_ptr<Backend> WithDamagedOverride(std::unique_ptr<Backend> inner, std::string fault) {
  return std::make_unique<DamagedOverride>(std::move(inner), std::move(fault));
}

}  // namespace dsa::testing
