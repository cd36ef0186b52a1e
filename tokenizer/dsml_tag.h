// One tag of V3.2's tool calls, read leniently: spaces where a model may put them, attributes in
// any order.  Within tokenizer/ only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dsa {

struct DsmlTag {
  enum class Kind : std::uint8_t {
    kCalls,      // <｜DSML｜function_calls>, or tool_calls, or one of either
    kInvoke,     // <｜DSML｜invoke name="...">
    kParameter,  // <｜DSML｜parameter name="..." string="true">
    kOther,      // a closing tag of any other name
  };

  Kind kind = Kind::kOther;
  bool closing = false;
  std::string name;
  bool is_string = false;  // string="true"
  std::size_t bytes = 0;
};

enum class DsmlRead : std::uint8_t {
  kNone,     // no tag, however the text goes on
  kPartial,  // the text ends within what may become one
  kTag,
};

// No tag is longer, nor is a partial one.
inline constexpr std::size_t kDsmlTagBytesMax = 4096;

// The tag that `text` begins with.
DsmlRead ReadDsmlTag(std::string_view text, DsmlTag& tag);

// Where the first tag of `text` begins, from `from` on, by its first characters alone; or where one
// may begin at the end; otherwise its size.  `whole` says which.
std::size_t FindDsmlTag(std::string_view text, std::size_t from, bool& whole);

}  // namespace dsa
