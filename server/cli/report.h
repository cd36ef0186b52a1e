// How a command says that it cannot do its work: one line on standard error, and an exit code.
#pragma once

#include "common/status.h"

#include <string>
#include <string_view>
#include <vector>

namespace CLI {  // NOLINT(readability-identifier-naming): the library's name
class App;
class ParseError;
class Validator;
}  // namespace CLI

namespace dsa {

// The commands directly below one, in the order of --help.
std::vector<std::string> CommandNames(const CLI::App& app);

// Prints "error: <message>" behind what was logged; returns the exit code.
int ReportError(const Error& error);

// Prints the help that was asked for, or one line that names the argument and what is allowed.
// Returns the exit code.
int ReportParseError(const CLI::App& app, const CLI::ParseError& error);

// Writes out what standard output holds.  `exit_code`, or 1 and a line where that fails.
int FlushOutput(int exit_code);

// Whole decimal numbers of 64 bits, and nothing that CLI11 would take for another base or clamp.
CLI::Validator WholeNumber();
// The same from 0 to 2^64 - 1.
CLI::Validator Unsigned();
// Numbers in [minimum, maximum]; NaN is none.
CLI::Validator FiniteIn(double minimum, double maximum);
// Any text but "".
CLI::Validator NotEmpty();

}  // namespace dsa
