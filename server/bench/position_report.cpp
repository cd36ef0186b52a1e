// The files and the text of `dsa bench position`.
#include "common/json.h"
#include "server/bench/output_folder.h"
#include "server/bench/position_bench.h"
#include "server/bench/position_picture.h"
#include "server/bench/units.h"
#include "server/version.h"

#include <algorithm>
#include <chrono>
#include <ctime>

#include <fmt/chrono.h>
#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr double kLatentAttentionWidth = 576 + 512;  // products of a head and key: score and value
constexpr double kIndexerWidth = 128;
constexpr double kFlopsPerProduct = 2;

const char* KvName(KvFormat format) {
  switch (format) {
    case KvFormat::kFp8: return "fp8";
    case KvFormat::kBf16: return "bf16";
    case KvFormat::kF32: return "f32";
  }
  return "";
}

std::string Today() {
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)));
}

// What a token's context of 1K costs at least, over all layers.
struct WorkPerK {
  double attention_flops;
  double attention_bytes;
  double indexer_flops;
  double indexer_bytes;
};
// `expanded`: keys and values of each head, as the masked path has them.
WorkPerK WorkOf(const PositionResult& result, bool expanded) {
  const ModelConfig& model = result.config;
  const double tokens = kTokensPerK * static_cast<double>(model.layers);
  const double width =
      expanded ? static_cast<double>(model.nope + kRopeWidth + model.value) : kLatentAttentionWidth;
  return {.attention_flops = static_cast<double>(model.heads) * width * kFlopsPerProduct * tokens,
          .attention_bytes = static_cast<double>(LatentTokenBytes(result.kv_format)) * tokens,
          .indexer_flops =
              static_cast<double>(model.index_heads) * kIndexerWidth * kFlopsPerProduct * tokens,
          .indexer_bytes = static_cast<double>(IndexerTokenBytes(result.kv_format)) * tokens};
}

const char* PartName(Part part) {
  return part == Part::kStep ? "step" : "indexer and attention";
}

Json EstimateOf(const Estimate& estimate) {
  return {{"value", estimate.value}, {"error", estimate.error}};
}

// A slope and the rates that it stands for: work per 1K of context by time per 1K of context. Bytes
// are those of a token of its own sequence, which a decode step reads.
Json SegmentOf(const Estimate& slope, double flops, double bytes, bool decode) {
  Json json = {{"slope_us_per_1k", EstimateOf(slope)}};
  if (slope.value > 0) {
    json["implied_tflops"] = flops / slope.value / 1e6;
    if (decode) {
      json["implied_gb_per_s"] = bytes / slope.value / 1e3;
    }
  }
  return json;
}

Json FitOf(const PositionResult& result, const PositionFit& fitted) {
  const CostFit& fit = fitted.fit;
  const bool sparse = fitted.attention == Attention::kSparse;
  const bool masked = sparse ? result.masked_until > 0 : result.dense_is_masked;
  const WorkPerK work = WorkOf(result, !fitted.decode && masked);
  const double flops = work.attention_flops + (sparse ? work.indexer_flops : 0);
  const double bytes = work.attention_bytes + (sparse ? work.indexer_bytes : 0);
  Json segments = Json::array();
  segments.push_back(SegmentOf(fit.slope_us_per_k, flops, bytes, fitted.decode));
  if (fit.slope_after_us_per_k) {
    segments.push_back(SegmentOf(*fit.slope_after_us_per_k, work.indexer_flops, work.indexer_bytes,
                                 fitted.decode));
  }
  return {{"phase", PhaseName(fitted.decode)},
          {"attn", NameOf(fitted.attention)},
          {"batch", fitted.batch},
          {"part", PartName(fitted.part)},
          {"fixed_us", EstimateOf(fit.fixed_us)},
          {"knee", fit.knee ? EstimateOf(*fit.knee) : Json()},
          {"segments", segments},
          {"relative_residual", fit.residual}};
}

Json OperatorsOf(const PositionRow& row) {
  const PointOperators& operators = *row.operators;
  Json shares = Json::object();
  double sum_us = 0;
  for (std::size_t i = 0; i < kOperatorNames.size(); ++i) {
    const double us = operators.times_us[i];
    if (us > 0) {
      shares[std::string(kOperatorNames[i])] = {{"us", us}, {"share", us / operators.step_us}};
    }
    sum_us += us;
  }
  return {{"phase", PhaseName(row.decode)},
          {"attn", NameOf(row.attention)},
          {"position", row.position},
          {"batch", row.batch},
          {"step_us", operators.step_us},
          {"operators_us", sum_us},
          {"instrumented_to_plain", operators.to_plain},
          {"operators", shares}};
}

// Bytes of keys that a decode step must read at least, and the rate that its time over the
// operators that read them, where known, stands for: above the device's it would read less.
Json KeyBytesOf(const PositionResult& result, const PositionRow& row) {
  const ModelConfig& model = result.config;
  const double keys = row.middle();
  const bool sparse = row.attention == Attention::kSparse;
  const auto topk = static_cast<double>(model.index_topk);
  double per_layer = static_cast<double>(LatentTokenBytes(result.kv_format)) *
                     (sparse ? std::min(keys, topk) : keys);
  if (sparse && keys > topk) {
    per_layer += static_cast<double>(IndexerTokenBytes(result.kv_format)) * keys;
  }
  const double bytes =
      per_layer * static_cast<double>(model.layers) * static_cast<double>(row.batch);
  const double us = row.attention_us() > 0 ? row.attention_us() : row.step_us;
  return {{"bytes", bytes}, {"gb_per_s", bytes / us / 1e3}};
}

// Seconds to the first token of a prompt that has the device for itself: the prefill curve, summed
// by straight lines between its points.
std::optional<double> PromptSeconds(const std::vector<CostPoint>& curve, double tokens) {
  if (curve.empty() || curve.back().position < tokens * 0.98) {
    return std::nullopt;
  }
  double us = curve.front().cost_us * std::min(tokens, curve.front().position);
  for (std::size_t i = 1; i < curve.size() && curve[i - 1].position < tokens; ++i) {
    const CostPoint& from = curve[i - 1];
    const CostPoint& to = curve[i];
    const double end = std::min(tokens, to.position);
    const double share = (end - from.position) / (to.position - from.position);
    const double at_end = from.cost_us + (to.cost_us - from.cost_us) * share;
    us += (end - from.position) * (from.cost_us + at_end) / 2;
  }
  us += std::max(0.0, tokens - curve.back().position) * curve.back().cost_us;
  return us / 1e6;
}

Json PromptsOf(const PositionResult& result) {
  Json prompts = Json::array();
  for (const double k : {1.0, 2.0, 3.5, 8.0, 16.0, 32.0, 64.0, 120.0, 160.0}) {
    Json prompt = {{"tokens", k * kTokensPerK}};
    for (const Attention attention : {Attention::kSparse, Attention::kDense}) {
      const auto seconds = PromptSeconds(CurveOf(result, false, attention, 1), k * kTokensPerK);
      if (seconds) {
        prompt[fmt::format("{}_seconds", NameOf(attention))] = *seconds;
      }
    }
    if (prompt.size() > 1) {
      prompts.push_back(prompt);
    }
  }
  return prompts;
}

std::string Csv(const PositionOptions& options, const PositionResult& result) {
  const std::string model = result.model_name + (result.is_scaled ? " scaled to all layers" : "");
  std::string text =
      "phase,attn,pos_start,pos_end,pos_mid,batch,chunk,tokens,steps,step_ms_p50,step_ms_p10,"
      "step_ms_p90,gpu_us_per_token,tok_per_s_per_gpu,usd_per_mtok,gpu_hour_usd,gpus,gpu_name,tp,"
      "ep,dp,kv_dtype,model,layers,git_sha,date\n";
  for (const PositionRow& row : result.rows) {
    text += fmt::format(
        "{},{},{},{},{},{},{},{},{},{:.4f},{:.4f},{:.4f},{:.4f},{:.3f},{:.6f},{},1,\"{}\",1,{},1,{}"
        ","
        "{},{},{},{}\n",
        PhaseName(row.decode), NameOf(row.attention), row.start, row.end, row.middle(), row.batch,
        row.chunk, row.chunk * row.steps, row.steps, row.step_us / 1e3, row.step_us_p10 / 1e3,
        row.step_us_p90 / 1e3, row.us_per_token(), 1e6 / row.us_per_token(),
        row.us_per_token() * options.gpu_hour_usd / kSecondsPerHour, options.gpu_hour_usd,
        result.device_name, result.expert_ranks, KvName(result.kv_format), model,
        result.config.layers, options.commit, Today());
  }
  return text;
}

Json PointsOf(const PositionOptions& options, const PositionResult& result) {
  Json rows = Json::array();
  for (const PositionRow& row : result.rows) {
    Json json = {{"phase", PhaseName(row.decode)},
                 {"attn", NameOf(row.attention)},
                 {"position", row.position},
                 {"pos_mid", row.middle()},
                 {"batch", row.batch},
                 {"chunk", row.chunk},
                 {"steps", row.steps},
                 {"step_ms_p50", row.step_us / 1e3},
                 {"gpu_us_per_token", row.us_per_token()},
                 {"relative_error", row.error_us / row.step_us},
                 {"usd_per_mtok", row.us_per_token() * options.gpu_hour_usd / kSecondsPerHour}};
    if (row.attention_us() > 0) {
      json["indexer_and_attention_us_per_token"] =
          row.attention_us() / static_cast<double>(row.chunk);
    }
    if (row.decode) {
      json["keys_read"] = KeyBytesOf(result, row);
    }
    rows.push_back(std::move(json));
  }
  return rows;
}

// What the points say together.
Json FindingsOf(const PositionOptions& options, const PositionResult& result) {
  Json fits = Json::array();
  for (const PositionFit& fit : result.fits) {
    fits.push_back(FitOf(result, fit));
  }
  Json operators = Json::array();
  for (const PositionRow& row : result.rows) {
    if (row.operators) {
      operators.push_back(OperatorsOf(row));
    }
  }
  return {{"layers", result.config.layers}, {"summary", PositionSentences(result)},
          {"decomposition", fits},          {"prompts", PromptsOf(result)},
          {"operators", operators},         {"points", PointsOf(options, result)}};
}

std::string ToJsonText(const PositionOptions& options, const PositionResult& result) {
  Json json = {{"model", result.model_name},
               {"slice", options.slice},
               {"exchange_between_ranks", result.expert_ranks > 1 ? Json("not included") : Json()},
               {"dense", options.dense_keeps_index ? "attention: dense" : "twin without indexer"},
               {"index_topk", result.config.index_topk},
               {"device", result.device_name},
               {"kv_dtype", KvName(result.kv_format)},
               {"masked_mha_until", result.masked_until},
               {"version", kVersion},
               {"git_sha", options.commit},
               {"date", Today()},
               {"quick", options.quick},
               {"gpu_hour_usd", options.gpu_hour_usd},
               {"keys", "copied from a real prefill"},
               {"computed_to_copied_step",
                result.computed_to_copied ? Json(*result.computed_to_copied) : Json()},
               {"complete", result.complete},
               {"skipped", result.skipped}};
  json.update(FindingsOf(options, result));
  if (result.is_cut()) {
    json["scaled_to_all_layers"] = FindingsOf(options, ScaledToWhole(result));
  }
  return json.dump(2) + "\n";
}

std::string FitText(const PositionFit& fitted) {
  const CostFit& fit = fitted.fit;
  std::string text = fmt::format(
      "{} {} batch {}, {}: {:.1f} +- {:.1f} us per token, {:+.2f} +- {:.2f} us per 1K of context",
      PhaseName(fitted.decode), NameOf(fitted.attention), fitted.batch, PartName(fitted.part),
      fit.fixed_us.value, fit.fixed_us.error, fit.slope_us_per_k.value, fit.slope_us_per_k.error);
  if (fit.knee) {
    text += fmt::format(" up to {:.0f} +- {:.0f}, then {:+.2f} +- {:.2f}", fit.knee->value,
                        fit.knee->error, fit.slope_after_us_per_k->value,
                        fit.slope_after_us_per_k->error);
  }
  return text + fmt::format(" (off by {:.1f} %)\n", 100 * fit.residual);
}

void PrintTable(const PositionOptions& options, const PositionResult& result) {
  fmt::print("{:<8}{:<8}{:>10}{:>7}{:>7}{:>12}{:>9}{:>14}{:>12}{:>12}\n", "phase", "attn",
             "position", "batch", "steps", "step ms", "+- %", "us per token", "tokens/s",
             "$ per M");
  for (const PositionRow& row : result.rows) {
    fmt::print("{:<8}{:<8}{:>10.0f}{:>7}{:>7}{:>12.3f}{:>9.2f}{:>14.2f}{:>12.1f}{:>12.4f}\n",
               PhaseName(row.decode), NameOf(row.attention), row.middle(), row.batch, row.steps,
               row.step_us / 1e3, 100 * row.error_us / row.step_us, row.us_per_token(),
               1e6 / row.us_per_token(),
               row.us_per_token() * options.gpu_hour_usd / kSecondsPerHour);
  }
}

void PrintFindings(const PositionResult& result) {
  fmt::print("{}\n", TerminalPlot(result));
  for (const PositionFit& fit : result.fits) {
    fmt::print("{}", FitText(fit));
  }
  for (const std::string& sentence : PositionSentences(result)) {
    fmt::print("{}\n", sentence);
  }
}

}  // namespace

Status WritePositions(const PositionOptions& options, const PositionResult& result) {
  DSA_RETURN_IF_ERROR(WriteTextFile(options.output, "position.csv", Csv(options, result)));
  DSA_RETURN_IF_ERROR(WriteTextFile(options.output, "position.json", ToJsonText(options, result)));
  fmt::print("{}, {} layers, {}, ${} an hour; keys copied from a real prefill\n", result.model_name,
             result.config.layers, result.device_name, options.gpu_hour_usd);
  PrintTable(options, result);
  const char* const exchange = result.expert_ranks > 1 ? ", without exchange" : "";
  std::string title = fmt::format("{}{}, {} layers, {}", result.model_name, exchange,
                                  result.config.layers, result.device_name);
  PositionResult shown = result;
  if (result.is_cut()) {
    shown = ScaledToWhole(result);
    DSA_RETURN_IF_ERROR(WriteTextFile(options.output, "position_scaled.csv", Csv(options, shown)));
    title = fmt::format("{}{}, scaled from {} to {} layers, {}", result.model_name, exchange,
                        result.config.layers, result.whole.layers, result.device_name);
    fmt::print("\nscaled from {} to {} layers:\n", result.config.layers, result.whole.layers);
    PrintTable(options, shown);
  }
  PrintFindings(shown);
  if (result.computed_to_copied) {
    fmt::print("a decode step over computed keys took {:.3f} of one over copied keys\n",
               *result.computed_to_copied);
  }
  if (!result.skipped.empty()) {
    fmt::print("{} points skipped, the first: {}\n", result.skipped.size(), result.skipped.front());
  }
  return DrawPicture(options.output, title, options.gpu_hour_usd, shown);
}

}  // namespace dsa::bench
