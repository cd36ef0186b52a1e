#include "model/rope_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include <fmt/core.h>

namespace dsa {
namespace {

// Peng et al. 2023 (YaRN), as DeepSeek configures it: frequencies are interpolated, the tables
// keep magnitude 1 and the softmax scale takes the whole temperature.
struct Yarn {
  double factor;
  double context_original;
  double rotations_fast;  // beta_fast: pairs that turn more often keep their frequency
  double rotations_slow;  // beta_slow: pairs that turn less often are slowed by `factor`
  double mscale;          // of the softmax temperature
};

Result<double> ReadOr(JsonObject& json, std::string_view key, double absent) {
  if (!json.Has(key)) {
    return absent;
  }
  return json.ReadDouble(key, 1e-3, 1e6);
}

Result<Yarn> ReadYarn(JsonObject& json) {
  Yarn yarn{};
  DSA_ASSIGN_OR_RETURN(yarn.factor, json.ReadDouble("factor", 1.0, 1e6));
  DSA_ASSIGN_OR_RETURN(const std::int64_t original,
                       json.ReadInt("original_max_position_embeddings", 1, 1 << 22));
  yarn.context_original = static_cast<double>(original);
  DSA_ASSIGN_OR_RETURN(yarn.rotations_fast, ReadOr(json, "beta_fast", 32.0));
  DSA_ASSIGN_OR_RETURN(yarn.rotations_slow, ReadOr(json, "beta_slow", 1.0));
  DSA_ASSIGN_OR_RETURN(yarn.mscale, json.ReadDouble("mscale", 1e-3, 100.0));
  DSA_ASSIGN_OR_RETURN(const double all, json.ReadDouble("mscale_all_dim", 1e-3, 100.0));
  if (all != yarn.mscale) {
    return json.MakeError(
        "mscale_all_dim",
        fmt::format("{} differs from mscale {}, which is not supported", all, yarn.mscale));
  }
  for (const std::string_view key : {"attention_factor", "truncate"}) {
    if (json.Has(key)) {
      DSA_ASSIGN_OR_RETURN(const Json* value, json.ReadAny(key));
      if (key != "truncate" || *value != true) {
        return json.MakeError(key, fmt::format("{} is not supported", Brief(*value)));
      }
    }
  }
  return yarn;
}

// The pair (as a real number) that turns `rotations` times over the original context.
double PairOf(double rotations, double theta, const Yarn& yarn) {
  const auto width = static_cast<double>(kRopeWidth);
  return width * std::log(yarn.context_original / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(theta));
}

void ApplyYarn(const Yarn& yarn, double theta, ModelConfig& config) {
  const double low = std::max(std::floor(PairOf(yarn.rotations_fast, theta, yarn)), 0.0);
  const double high = std::min(std::ceil(PairOf(yarn.rotations_slow, theta, yarn)),
                               static_cast<double>(kRopeWidth - 1));
  for (std::size_t i = 0; i < config.rope_frequencies.size(); ++i) {
    const double ramp =
        std::clamp((static_cast<double>(i) - low) / std::max(high - low, 0.001), 0.0, 1.0);
    double& frequency = config.rope_frequencies[i];
    frequency = frequency * (1.0 - ramp) + frequency / yarn.factor * ramp;
  }
}

// The parameters as "rope_parameters" has them: "type" is the older name of "rope_type", and the
// base stood outside.
Json Newest(Json parameters) {
  if (parameters.is_object()) {
    if (parameters.contains("type")) {
      const Json older = parameters["type"];
      if (parameters.value("rope_type", older) == older) {
        parameters.erase("type");
        parameters["rope_type"] = older;
      }
    }
    parameters.erase("rope_theta");
  }
  return parameters;
}

// The object with the parameters, or nullptr: plain RoPE.
Result<const Json*> FindParameters(JsonObject& json) {
  const bool newer = json.Has("rope_parameters");
  const bool older = json.Has("rope_scaling");
  if (newer && older) {
    DSA_ASSIGN_OR_RETURN(const Json* parameters, json.ReadAny("rope_parameters"));
    DSA_ASSIGN_OR_RETURN(const Json* scaling, json.ReadAny("rope_scaling"));
    if (Newest(*parameters) != Newest(*scaling)) {
      return json.MakeError("rope_scaling",
                            fmt::format("{} contradicts rope_parameters", Brief(*scaling)));
    }
  }
  if (newer || older) {
    return json.ReadAny(newer ? "rope_parameters" : "rope_scaling");
  }
  return nullptr;
}

// "rope_theta", at the top, among the parameters, or in both with one value.
Result<double> ReadTheta(JsonObject& json, std::optional<JsonObject>& parameters) {
  constexpr double kMinimum = 2.0;
  constexpr double kMaximum = 1e9;
  const bool inside = parameters && parameters->Has("rope_theta");
  if (!inside) {
    return json.ReadDouble("rope_theta", kMinimum, kMaximum);
  }
  DSA_ASSIGN_OR_RETURN(const double theta,
                       parameters->ReadDouble("rope_theta", kMinimum, kMaximum));
  if (json.Has("rope_theta")) {
    DSA_ASSIGN_OR_RETURN(const double top, json.ReadDouble("rope_theta", kMinimum, kMaximum));
    if (top != theta) {
      return json.MakeError("rope_theta",
                            fmt::format("{} contradicts {} in the parameters", top, theta));
    }
  }
  return theta;
}

// "rope_type", or "type" as older files spell it; both where they agree.
Result<std::string> ReadType(JsonObject& json) {
  const std::vector<std::string> allowed = {"default", "yarn"};
  std::string type = "default";
  for (const std::string_view key : {"type", "rope_type"}) {
    if (!json.Has(key)) {
      continue;
    }
    DSA_ASSIGN_OR_RETURN(const std::string value, json.ReadChoice(key, allowed));
    if (key == "rope_type" && json.Has("type") && value != type) {
      return json.MakeError(key, fmt::format("\"{}\" contradicts type \"{}\"", value, type));
    }
    type = value;
  }
  return type;
}

}  // namespace

Status ReadRope(JsonObject& json, ModelConfig& config) {
  DSA_ASSIGN_OR_RETURN(const Json* found, FindParameters(json));
  std::optional<JsonObject> parameters;
  if (found != nullptr) {
    const std::string_view key = json.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
    DSA_ASSIGN_OR_RETURN(parameters, json.ReadObject(key));
  }
  DSA_ASSIGN_OR_RETURN(const double theta, ReadTheta(json, parameters));
  for (std::size_t i = 0; i < config.rope_frequencies.size(); ++i) {
    config.rope_frequencies[i] =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(kRopeWidth));
  }
  double scale = 1.0 / std::sqrt(static_cast<double>(config.nope + kRopeWidth));
  if (parameters) {
    if (parameters->Has("partial_rotary_factor")) {
      DSA_RETURN_IF_ERROR(parameters->ReadDouble("partial_rotary_factor", 1.0, 1.0));
    }
    DSA_ASSIGN_OR_RETURN(const std::string type, ReadType(*parameters));
    if (type == "yarn") {
      DSA_ASSIGN_OR_RETURN(const Yarn yarn, ReadYarn(*parameters));
      ApplyYarn(yarn, theta, config);
      const double temperature = 0.1 * yarn.mscale * std::log(yarn.factor) + 1.0;
      scale *= temperature * temperature;
    }
  }
  config.softmax_scale = scale;
  return {};
}

}  // namespace dsa
