// A small checkpoint that says exactly what a test wants, through all of the server: embeddings are
// random +-1 and nearly orthogonal, attention and MLP add zero, and the head's row of the next
// token is the embedding of this one, so that greedy decoding follows a chain of tokens.
#pragma once

#include <string>
#include <vector>

namespace dsa::testing {

// What follows what.  A reply is text, which is cut into tokens of its own, and added tokens:
// {"id": between two angle brackets} such as "[<｜tool▁sep｜>]" in the text, which must be none
// twice.
struct Script {
  std::string after_no_thinking;  // behind "</think>"
  std::string after_thinking;     // behind "<think>"; may end with "[</think>]"
};

// Writes the checkpoint; replies end with the end id, unless a text ends with "[cut]".
void WriteScriptedModel(const Script& script, const std::string& folder);

}  // namespace dsa::testing
