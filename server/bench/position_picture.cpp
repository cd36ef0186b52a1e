#include "server/bench/position_picture.h"

#include "server/bench/output_folder.h"
#include "server/bench/units.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>

extern char** environ;

namespace dsa::bench {
namespace {

constexpr double kPaperGpuHourUsd = 2;
constexpr int kPlotRows = 14;
constexpr int kPlotColumns = 64;

// Vertices of the paper's figure: position, $ per million tokens.
struct PaperCurve {
  bool decode;
  Attention attention;
  const char* name;
  std::vector<std::pair<double, double>> vertices;
};
const std::vector<PaperCurve>& PaperCurves() {
  static const std::vector<PaperCurve> curves = {
      {false, Attention::kDense, "V3.1-Terminus", {{0, 0.0529}, {131072, 0.6658}}},
      {false, Attention::kSparse, "V3.2-Exp", {{0, 0.0611}, {6747, 0.0999}, {131072, 0.1871}}},
      {true, Attention::kDense, "V3.1-Terminus", {{0, 0.0705}, {131072, 2.1543}}},
      {true,
       Attention::kSparse,
       "V3.2-Exp",
       {{0, 0.0951}, {2106, 0.1457}, {104047, 0.2274}, {131070, 0.2491}}},
  };
  return curves;
}

double PaperAt(const PaperCurve& curve, double position) {
  const auto& points = curve.vertices;
  for (std::size_t i = 1; i < points.size(); ++i) {
    if (position <= points[i].first || i + 1 == points.size()) {
      const double share =
          (position - points[i - 1].first) / (points[i].first - points[i - 1].first);
      return points[i - 1].second + (points[i].second - points[i - 1].second) * share;
    }
  }
  return points.front().second;
}

// The largest batch: what the figure is about.
std::int64_t ShownBatch(const PositionResult& result, bool decode) {
  const auto batches = BatchesOf(result, decode);
  return batches.empty() ? 0 : batches.back();
}

std::string PlotPanel(const PositionResult& result, bool decode) {
  const std::int64_t batch = ShownBatch(result, decode);
  const auto sparse = CurveOf(result, decode, Attention::kSparse, batch);
  const auto dense = CurveOf(result, decode, Attention::kDense, batch);
  double position_max = 1;
  double cost_max = 0;
  for (const auto* curve : {&sparse, &dense}) {
    for (const CostPoint& point : *curve) {
      position_max = std::max(position_max, point.position);
      cost_max = std::max(cost_max, point.cost_us);
    }
  }
  if (cost_max <= 0) {
    return "";
  }
  std::array<std::string, kPlotRows> lines;
  lines.fill(std::string(kPlotColumns, ' '));
  const auto draw = [&](const std::vector<CostPoint>& curve, char mark) {
    for (const CostPoint& point : curve) {
      const auto column =
          static_cast<std::size_t>(point.position / position_max * (kPlotColumns - 1));
      const auto row = static_cast<std::size_t>(point.cost_us / cost_max * (kPlotRows - 1));
      char& cell = lines[kPlotRows - 1 - row][column];
      cell = cell == ' ' || cell == mark ? mark : '#';
    }
  };
  draw(dense, 'o');
  draw(sparse, '*');
  std::string text = fmt::format("\n{}, batch {}: us per token; * DSA, o dense, # both\n",
                                 PhaseName(decode), batch);
  for (int row = 0; row < kPlotRows; ++row) {
    const double value = cost_max * (kPlotRows - 1 - row) / (kPlotRows - 1);
    text += fmt::format("{:>10.1f} |{}\n", value, lines[static_cast<std::size_t>(row)]);
  }
  return text + fmt::format("{:>10} +{}\n{:>12}{:>{}}\n", "", std::string(kPlotColumns, '-'), "0",
                            fmt::format("{:.0f}", position_max), kPlotColumns);
}

std::string DataBlock(const std::string& name,
                      const std::vector<std::pair<double, double>>& points) {
  std::string text = "$" + name + " << END\n";
  for (const auto& [position, cost] : points) {
    text += fmt::format("{} {}\n", position / kTokensPerK, cost);
  }
  return text + "END\n";
}

struct Panel {
  std::string data;
  std::string plot;
};

void AddCurve(Panel& panel, const std::string& name, const std::string& title, const char* style,
              const std::vector<std::pair<double, double>>& points) {
  panel.data += DataBlock(name, points);
  panel.plot += fmt::format("{}${} using 1:2 with {} title \"{}\"", panel.plot.empty() ? "" : ", ",
                            name, style, title);
}

Panel MakePanel(const PositionResult& result, bool decode, double gpu_hour_usd) {
  const double usd_per_us = gpu_hour_usd / kSecondsPerHour;
  const std::int64_t batch = ShownBatch(result, decode);
  Panel panel;
  double end = 0;
  double dense_end_usd = 0;
  for (const Attention attention : {Attention::kDense, Attention::kSparse}) {
    std::vector<std::pair<double, double>> points;
    for (const CostPoint& point : CurveOf(result, decode, attention, batch)) {
      points.emplace_back(point.position, point.cost_us * usd_per_us);
    }
    if (points.empty()) {
      continue;
    }
    end = std::max(end, points.back().first);
    const bool dense = attention == Attention::kDense;
    dense_end_usd = dense ? points.back().second : dense_end_usd;
    AddCurve(panel, fmt::format("ours_{}_{}", PhaseName(decode), NameOf(attention)),
             dense ? "dense" : "DSA",
             dense ? "linespoints lw 2 pt 7 ps 0.6 lc rgb '#4c72b0'"
                   : "linespoints lw 2 pt 7 ps 0.6 lc rgb '#c44e52'",
             points);
  }
  if (dense_end_usd <= 0) {
    return panel;
  }
  const bool same_kind = result.device_name.find("H800") != std::string::npos ||
                         result.device_name.find("H100") != std::string::npos ||
                         result.device_name.find("H200") != std::string::npos;
  double scale = gpu_hour_usd / kPaperGpuHourUsd;
  for (const PaperCurve& curve : PaperCurves()) {
    if (curve.decode == decode && curve.attention == Attention::kDense && !same_kind) {
      scale = dense_end_usd / PaperAt(curve, end);
    }
  }
  for (const PaperCurve& curve : PaperCurves()) {
    if (curve.decode != decode) {
      continue;
    }
    std::vector<std::pair<double, double>> points;
    for (const auto& [position, usd] : curve.vertices) {
      if (position < end) {
        points.emplace_back(position, usd * scale);
      }
    }
    points.emplace_back(end, PaperAt(curve, end) * scale);
    const bool dense = curve.attention == Attention::kDense;
    AddCurve(panel, fmt::format("paper_{}_{}", PhaseName(decode), NameOf(curve.attention)),
             same_kind ? fmt::format("{} (paper)", curve.name)
                       : fmt::format("{} (paper x {:.3g})", curve.name, scale),
             dense ? "lines dt 2 lc rgb '#8c9fc0'" : "lines dt 2 lc rgb '#d69a9c'", points);
  }
  return panel;
}

// In double quotes gnuplot takes backslashes and quotes for its own.
std::string Quoted(std::string text) {
  std::erase_if(text, [](char c) { return c == '"' || c == '\\' || c == '\n'; });
  return "\"" + text + "\"";
}

// The exit code of `gnuplot script` in the folder; -1 where it cannot be started.
int RunGnuplot(const std::string& script) {
  std::string program = "gnuplot";
  std::string argument = script;
  std::array<char*, 3> arguments = {program.data(), argument.data(), nullptr};
  pid_t process = 0;
  if (posix_spawnp(&process, "gnuplot", nullptr, nullptr, arguments.data(), environ) != 0) {
    return -1;
  }
  int status = 0;
  waitpid(process, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

std::string TerminalPlot(const PositionResult& result) {
  return PlotPanel(result, false) + PlotPanel(result, true);
}

Status DrawPicture(const std::string& folder, const std::string& title, double gpu_hour_usd,
                   const PositionResult& result) {
  const Panel prefill = MakePanel(result, false, gpu_hour_usd);
  const Panel decode = MakePanel(result, true, gpu_hour_usd);
  if (prefill.plot.empty() || decode.plot.empty()) {
    fmt::print(stderr, "no picture: a phase has no point\n");
    return {};
  }
  std::string script = prefill.data + decode.data;
  const auto is_far = [](const PositionRow& row) { return row.end > 65536; };
  if (std::any_of(result.rows.begin(), result.rows.end(), is_far)) {
    script += "set xtics 32\n";  // as in the paper
  }
  script +=
      "set encoding utf8\nset grid lc rgb '#dddddd'\nset key top left\n"
      "set xlabel 'Token position (K)'\nset ylabel '$ per million tokens'\nset yrange [0:*]\n";
  const std::array<std::pair<const char*, const char*>, 2> pictures = {
      {{"pngcairo size 1200,480 font 'Sans,11'", "position.png"},
       {"svg size 1200,480 font 'Sans,12' background rgb 'white'", "position.svg"}}};
  for (const auto& [terminal, file] : pictures) {
    script += fmt::format(
        "set terminal {}\nset output {}\nset multiplot layout 1,2 title {}\n"
        "set title 'Prefilling'\nplot {}\nset title 'Decoding, batch {}'\nplot {}\n"
        "unset multiplot\nset output\n",
        terminal, Quoted(folder + "/" + file), Quoted(title), prefill.plot,
        ShownBatch(result, true), decode.plot);
  }
  DSA_RETURN_IF_ERROR(WriteTextFile(folder, "position.gnuplot", script));
  if (RunGnuplot(folder + "/position.gnuplot") != 0) {
    fmt::print(stderr,
               "no picture: gnuplot is not installed or failed; position.gnuplot makes it\n");
  }
  return {};
}

}  // namespace dsa::bench
