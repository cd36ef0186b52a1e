// The rules that the sources keep, as functions from a file's text to complaints, so that each rule
// is itself tested on text that breaks it.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace dsa::tidy {

struct Source {
  std::string path;  // relative to the repository's root, such as "server/engine/engine.h"
  std::string text;
};

struct Complaint {
  std::string path;
  int line;  // from 1; 0: the file as a whole
  std::string what;
};

// Folder -> the folders that its files may include besides itself.  The longest prefix decides, on
// both sides: server/engine is not server/api.
using IncludeGraph = std::map<std::string, std::set<std::string>>;

// The graph of docs/architecture.md.
const IncludeGraph& Graph();

// The longest folder of the graph that `path` lies in, or "" where there is none.
std::string FolderOf(std::string_view path, const IncludeGraph& graph);

std::vector<Complaint> CheckIncludes(const Source& source, const IncludeGraph& graph);
// Nothing of the API depends on a header of kernels/ or model/, however far: one complaint per
// file, with the way there.
std::vector<Complaint> CheckReach(const std::vector<Source>& sources);
// What every op's user includes depends on no op's own header, however far: a change of one op
// compiles that op's users.
std::vector<Complaint> CheckOpReach(const std::vector<Source>& sources);
// Libraries that only some folders may see: gRPC, protobuf, spdlog, nlohmann, CUDA.
std::vector<Complaint> CheckLibraries(const Source& source);
std::vector<Complaint> CheckSizes(const Source& source);
std::vector<Complaint> CheckBannedWords(const Source& source);
// A header opens with a comment that says what it is for, and is guarded.
std::vector<Complaint> CheckHead(const Source& source);

// The text with comments and string literals blanked out, line breaks kept.
std::string CodeOnly(std::string_view text);

}  // namespace dsa::tidy
