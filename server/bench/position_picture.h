// The two panels of the paper's cost figure, ours before the paper's: in a terminal and by gnuplot.
#pragma once

#include "common/status.h"
#include "server/bench/position_bench.h"

#include <string>

namespace dsa::bench {

// Cost against position by characters, a panel a phase.
std::string TerminalPlot(const PositionResult& result);

// Writes FOLDER/position.gnuplot and lets gnuplot make position.png and position.svg of it; a line
// on standard error where gnuplot is not installed.  The paper's curves (DeepSeek-V3.2-Exp, figure
// 3, H800 at $2) are dashed; where ours is another machine's they are scaled to our dense curve's
// end, and the legend says by how much.
Status DrawPicture(const std::string& folder, const std::string& title, double gpu_hour_usd,
                   const PositionResult& result);

}  // namespace dsa::bench
