// What comes from outside, one function a format.  Each takes any bytes, has them read by the code
// that the server runs, and CHECK-fails unless they are either accepted, and then mean what they
// should, or refused in one line that names where they came from.  The signature is that of
// LLVMFuzzerTestOneInput (libfuzzer.cpp); mutation_test.cpp calls the same functions in CI.
//
// Single thread: targets keep the files they read in folders of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace dsa::fuzz {

int FuzzSafetensors(const std::uint8_t* data, std::size_t size);      // a whole file
int FuzzIndex(const std::uint8_t* data, std::size_t size);            // of a checkpoint's shards
int FuzzConfig(const std::uint8_t* data, std::size_t size);           // config.json
int FuzzGeneration(const std::uint8_t* data, std::size_t size);       // generation_config.json
int FuzzTokenizerFile(const std::uint8_t* data, std::size_t size);    // tokenizer.json
int FuzzTokenizerConfig(const std::uint8_t* data, std::size_t size);  // tokenizer_config.json
int FuzzTokenizeLine(const std::uint8_t* data, std::size_t size);     // of `dsa tokenize`
int FuzzRenderLine(const std::uint8_t* data, std::size_t size);       // of `dsa render`
int FuzzReply(const std::uint8_t* data, std::size_t size);            // how to cut it, then a reply

struct Target {
  const char* name;
  int (*run)(const std::uint8_t*, std::size_t);
  std::vector<std::string> (*seeds)();  // valid inputs
  int rounds;                           // in CI
};
std::span<const Target> Targets();

}  // namespace dsa::fuzz
