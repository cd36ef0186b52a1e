#include "tests/tidy/rules.h"

#include <array>
#include <map>
#include <optional>
#include <regex>
#include <span>
#include <sstream>
#include <utility>

namespace dsa::tidy {
namespace {

constexpr int kLinesMax = 500;
constexpr int kCudaLinesMax = 700;
constexpr int kFunctionLinesMax = 70;

std::vector<std::string> Lines(std::string_view text) {
  std::vector<std::string> lines;
  std::istringstream stream{std::string(text)};
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool IsUnder(std::string_view path, std::string_view folder) {
  return path.size() > folder.size() && path.substr(0, folder.size()) == folder &&
         path[folder.size()] == '/';
}

bool IsCuda(std::string_view path) {
  return EndsWith(path, ".cu") || EndsWith(path, ".cuh");
}

// A quoted include's path, or "".
std::string Included(const std::string& line, char open, char close) {
  static const std::regex pattern(R"re(^\s*#\s*include\s+(["<])([^">]+)[">])re");
  std::smatch match;
  if (!std::regex_search(line, match, pattern) || match[1] != std::string(1, open)) {
    return "";
  }
  (void)close;
  return match[2];
}

}  // namespace

const IncludeGraph& Graph() {
  static const IncludeGraph graph = {
      {"common", {}},
      {"kernels", {"common"}},
      {"cache", {"common", "kernels"}},
      {"model", {"common", "kernels", "cache"}},
      {"tokenizer", {"common"}},
      {"scheduler", {"common", "cache"}},
      {"proto", {}},
      {"server/engine", {"common", "kernels", "cache", "model", "tokenizer", "scheduler"}},
      {"server/net", {"common"}},
      {"server/api", {"common", "tokenizer", "scheduler", "server/engine"}},
      {"server/grpc",
       {"common", "tokenizer", "scheduler", "proto", "server/engine", "server/net", "server/api"}},
      {"server/http",
       {"common", "tokenizer", "scheduler", "server/engine", "server/net", "server/api"}},
      {"server/bench",
       {"common", "kernels", "cache", "model", "tokenizer", "scheduler", "proto", "server/engine",
        "server/api", "server/grpc", "server"}},
      {"server",
       {"common", "kernels", "cache", "model", "tokenizer", "scheduler", "proto", "server/engine",
        "server/net", "server/api", "server/grpc", "server/http", "server/cli"}},
      {"server/cli",
       {"common", "kernels", "cache", "model", "tokenizer", "scheduler", "proto", "server/engine",
        "server/api", "server/grpc", "server/bench", "server"}},
  };
  return graph;
}

std::string FolderOf(std::string_view path, const IncludeGraph& graph) {
  std::string longest;
  for (const auto& [folder, allowed] : graph) {
    if (IsUnder(path, folder) && folder.size() > longest.size()) {
      longest = folder;
    }
  }
  return longest;
}

std::vector<Complaint> CheckIncludes(const Source& source, const IncludeGraph& graph) {
  std::vector<Complaint> complaints;
  const std::string folder = FolderOf(source.path, graph);
  if (folder.empty()) {
    return complaints;  // tests, benchmarks and tools may include everything
  }
  int line_number = 0;
  for (const std::string& line : Lines(source.text)) {
    ++line_number;
    const std::string included = Included(line, '"', '"');
    if (included.empty()) {
      continue;
    }
    const std::string target = FolderOf(included, graph);
    if (target != folder && graph.at(folder).count(target) == 0) {
      complaints.push_back({source.path, line_number, folder + " must not include " + included});
    }
  }
  return complaints;
}

namespace {

using Includes = std::map<std::string, std::vector<std::string>>;

Includes IncludesOf(const std::vector<Source>& sources) {
  Includes includes;
  for (const Source& source : sources) {
    for (const std::string& line : Lines(source.text)) {
      if (std::string included = Included(line, '"', '"'); !included.empty()) {
        includes[source.path].push_back(std::move(included));
      }
    }
  }
  return includes;
}

// The way from a file to the first one under any of `folders`, itself included; nullopt: there is
// none.
std::optional<std::string> WayTo(const std::string& from, std::span<const std::string_view> folders,
                                 const Includes& includes) {
  std::map<std::string, std::string> ways = {{from, ""}};
  std::vector<std::string> open = {from};
  while (!open.empty()) {
    const std::string path = std::move(open.back());
    open.pop_back();
    for (const std::string_view folder : folders) {
      if (IsUnder(path, folder)) {
        return ways[path];
      }
    }
    const auto found = includes.find(path);
    if (found == includes.end()) {
      continue;
    }
    for (const std::string& included : found->second) {
      if (ways.emplace(included, ways[path] + " " + included).second) {
        open.push_back(included);
      }
    }
  }
  return std::nullopt;
}

}  // namespace

std::vector<Complaint> CheckReach(const std::vector<Source>& sources) {
  static constexpr std::array<std::string_view, 2> kFolders = {"kernels", "model"};
  const Includes includes = IncludesOf(sources);
  std::vector<Complaint> complaints;
  for (const Source& source : sources) {
    if (!IsUnder(source.path, "server/api") && !IsUnder(source.path, "server/grpc") &&
        !IsUnder(source.path, "server/http")) {
      continue;
    }
    if (const auto way = WayTo(source.path, kFolders, includes)) {
      complaints.push_back({source.path, 0, "depends on" + *way});
    }
  }
  return complaints;
}

std::vector<Complaint> CheckOpReach(const std::vector<Source>& sources) {
  static constexpr std::array<std::string_view, 2> kFolders = {"kernels/ops", "kernels/fused"};
  const Includes includes = IncludesOf(sources);
  std::vector<Complaint> complaints;
  for (const char* header :
       {"kernels/backend.h", "kernels/forwarding_backend.h", "kernels/cpu/cpu_backend.h",
        "kernels/cuda/cuda_backend.h", "kernels/cuda/cuda_state.h", "kernels/cuda/ops.h"}) {
    if (includes.count(header) == 0) {
      complaints.push_back({header, 0, "is not there"});
    } else if (const auto way = WayTo(header, kFolders, includes)) {
      complaints.push_back({header, 0, "depends on" + *way});
    }
  }
  return complaints;
}

std::vector<Complaint> CheckLibraries(const Source& source) {
  struct Library {
    const char* prefix;                // of the included path
    std::vector<std::string> folders;  // or files that may include it
  };
  static const std::vector<Library> libraries = {
      {"grpc", {"server/grpc", "server/bench", "server/cli", "tests"}},
      {"google/protobuf", {"server/grpc", "server/bench", "server/cli", "tests"}},
      {"boost/",
       {"server/http/connection_loop.cpp", "server/http/request_parser.cpp",
        "server/http/session_timer.h"}},
      {"spdlog/", {"common/log.cpp", "common/spdlog_library.cpp"}},
      {"cuda", {"kernels/cuda"}},
      {"cublas", {"kernels/cuda"}},
      {"nccl", {"kernels/cuda"}},
  };
  std::vector<Complaint> complaints;
  const bool is_header = EndsWith(source.path, ".h") || EndsWith(source.path, ".cuh");
  int line_number = 0;
  for (const std::string& line : Lines(source.text)) {
    ++line_number;
    const std::string included = Included(line, '<', '>');
    for (const Library& library : libraries) {
      if (included.rfind(library.prefix, 0) != 0) {
        continue;
      }
      bool allowed = false;
      for (const std::string& folder : library.folders) {
        allowed = allowed || source.path == folder || IsUnder(source.path, folder);
      }
      if (!allowed) {
        complaints.push_back({source.path, line_number, "must not include <" + included + ">"});
      }
    }
    const bool heavy = included == "nlohmann/json.hpp" || included.rfind("fmt/", 0) == 0;
    if (heavy && is_header && source.path != "common/json.h" && !IsUnder(source.path, "tests")) {
      complaints.push_back({source.path, line_number, "a header includes <" + included + ">"});
    }
  }
  return complaints;
}

std::vector<Complaint> CheckSizes(const Source& source) {
  std::vector<Complaint> complaints;
  const std::vector<std::string> lines = Lines(CodeOnly(source.text));
  const int lines_max = IsCuda(source.path) ? kCudaLinesMax : kLinesMax;
  if (static_cast<int>(lines.size()) > lines_max) {
    complaints.push_back(
        {source.path, 0,
         std::to_string(lines.size()) + " lines, at most " + std::to_string(lines_max)});
  }
  if (IsCuda(source.path) || IsUnder(source.path, "tests")) {
    return complaints;  // device functions and test cases may be long
  }
  // clang-format puts the braces of a namespace-level definition's body on "... {" and "}".
  static const std::regex opening(R"(^[A-Za-z~].*\)[^;]*\{$|^    .*\)[^;=]*\{$)");
  static const std::regex type(R"(^(class|struct|union|enum)\b[^;]*$)");
  int start = 0;
  bool in_function = false;
  bool in_type = false;  // a type's members are measured where they are defined outside it
  for (int i = 0; i < static_cast<int>(lines.size()); ++i) {
    const std::string& line = lines[i];
    if (!in_function && !line.empty() && line[0] != ' ' && line[0] != '}') {
      start = i;  // the first line of what may be a signature over several lines
    }
    in_type = (in_type || std::regex_search(line, type)) && line.rfind('}', 0) != 0;
    if (!in_function && !in_type && std::regex_search(line, opening) &&
        lines[start].find("namespace") != 0) {
      in_function = true;
    }
    if (in_function && line.rfind('}', 0) == 0) {
      in_function = false;
      if (i - start + 1 > kFunctionLinesMax) {
        complaints.push_back({source.path, start + 1,
                              "a function of " + std::to_string(i - start + 1) +
                                  " lines, at most " + std::to_string(kFunctionLinesMax)});
      }
    }
  }
  return complaints;
}

std::vector<Complaint> CheckBannedWords(const Source& source) {
  struct Ban {
    std::string part;  // of whatever the pattern matches: a search for it takes no time
    std::regex pattern;
    const char* what;
    std::vector<std::string> except;  // files or folders
  };
  static const std::vector<Ban> bans = {
      {"cout", std::regex(R"(\bstd::cout\b)"), "std::cout: use the command's output functions", {}},
      {"printf", std::regex(R"((^|[^:\w])(std::)?printf\s*\()"), "printf: use fmt::print", {}},
      {"rand", std::regex(R"(\b(s?rand|random_shuffle)\s*\()"), "rand: use common/prng.h", {}},
      {"getenv",
       std::regex(R"(\bgetenv\s*\()"),
       "getenv: configuration has no environment variables",
       {"kernels/cuda/runtime_library.cpp",  // CUDA_HOME, where toolkits lie
        "kernels/cuda/nccl.cpp",             // what NCCL would be told by others than us
        "tests/gpu/data_ranks_check.cpp",    // the layout that it gives its own program
        "tests/kernels/nccl_test.cpp"}},
      {"volatile", std::regex(R"(\bvolatile\b)"), "volatile: use std::atomic", {}},
      {"catch",
       std::regex(R"(\bcatch\s*\(\s*\.\.\.\s*\))"),
       "catch (...): name what is caught",
       {}},
      {"endl", std::regex(R"(\bstd::endl\b)"), "std::endl: write \\n", {}},
      {"mmap", std::regex(R"(\bmmap\s*\()"), "mmap: files are read with pread", {}},
      {"alloca", std::regex(R"(\balloca\s*\()"), "alloca: the stack is no arena", {}},
      {"cudaMalloc",
       std::regex(R"(\bcudaMalloc\w*\s*\()"),
       "cudaMalloc: memory belongs to the backend",
       {"kernels/cuda/cuda_backend.cpp", "kernels/cuda/graphs.cpp"}},
      {"throw", std::regex(R"(\bthrow\b)"), "throw: return an Error", {}},
      {"delete",
       std::regex(R"(\bdelete\s+[A-Za-z_(*]|\bdelete\[\])"),
       "delete: own through a type",
       {"server/grpc", "tests"}},
      {"sleep_",
       std::regex(R"(\bstd::(this_thread::)?sleep_(for|until)\b)"),
       "sleep: wait for what you need",
       {"server/cli"}},
      {"detach", std::regex(R"(\.detach\s*\(\s*\))"), "detach: threads are joined", {}},
  };
  std::vector<Complaint> complaints;
  static const std::regex assembly(R"(\basm\s+volatile\b)");  // of the compiler, not the type
  int line_number = 0;
  for (const std::string& code : Lines(CodeOnly(source.text))) {
    ++line_number;
    const std::string line = code.find("volatile") != std::string::npos
                                 ? std::regex_replace(code, assembly, "asm")
                                 : code;
    for (const Ban& ban : bans) {
      bool excepted = false;
      for (const std::string& place : ban.except) {
        excepted = excepted || source.path == place || IsUnder(source.path, place);
      }
      if (!excepted && line.find(ban.part) != std::string::npos &&
          std::regex_search(line, ban.pattern)) {
        complaints.push_back({source.path, line_number, ban.what});
      }
    }
  }
  line_number = 0;
  static const std::regex leftover(
      "FIX"
      "ME|TO"
      "DO|XX"
      "X\\b");
  for (const std::string& line : Lines(source.text)) {
    ++line_number;
    const bool may_match = line.find("FIX") != std::string::npos ||
                           line.find("DO") != std::string::npos ||
                           line.find("XX") != std::string::npos;
    if (may_match && std::regex_search(line, leftover)) {
      complaints.push_back({source.path, line_number, "a leftover note"});
    }
  }
  return complaints;
}

std::vector<Complaint> CheckHead(const Source& source) {
  if (!EndsWith(source.path, ".h") && !EndsWith(source.path, ".cuh")) {
    return {};
  }
  std::vector<Complaint> complaints;
  if (source.text.rfind("//", 0) != 0) {
    complaints.push_back({source.path, 1, "a header opens with what it is for"});
  }
  if (source.text.find("#pragma once") == std::string::npos) {
    complaints.push_back({source.path, 0, "#pragma once is missing"});
  }
  return complaints;
}

std::string CodeOnly(std::string_view text) {
  enum class State { kCode, kLineComment, kBlockComment, kString, kCharacter, kRawString };
  std::string code;
  code.reserve(text.size());
  State state = State::kCode;
  std::string raw_end;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    char out = c == '\n' ? '\n' : ' ';
    switch (state) {
      case State::kCode:
        if (c == '/' && next == '/') {
          state = State::kLineComment;
        } else if (c == '/' && next == '*') {
          state = State::kBlockComment;
        } else if (c == '"' && i > 0 && text[i - 1] == 'R') {
          const std::size_t open = text.find('(', i);
          raw_end = ")" + std::string(text.substr(i + 1, open - i - 1)) + "\"";
          state = State::kRawString;
        } else if (c == '"') {
          state = State::kString;
        } else if (c == '\'' &&
                   (i == 0 || std::isalnum(static_cast<unsigned char>(text[i - 1])) == 0)) {
          state = State::kCharacter;
        } else {
          out = c;
        }
        break;
      case State::kLineComment:
        if (c == '\n') {
          state = State::kCode;
        }
        break;
      case State::kBlockComment:
        if (c == '/' && text[i - 1] == '*') {
          state = State::kCode;
        }
        break;
      case State::kString:
      case State::kCharacter:
        if (c == '\\') {
          code += ' ';
          ++i;
        } else if (c == (state == State::kString ? '"' : '\'')) {
          state = State::kCode;
        }
        break;
      case State::kRawString:
        if (text.substr(i, raw_end.size()) == raw_end) {
          code.append(raw_end.size() - 1, ' ');
          i += raw_end.size() - 1;
          state = State::kCode;
        }
        break;
    }
    code += out;
  }
  return code;
}

}  // namespace dsa::tidy
