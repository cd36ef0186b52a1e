#include "tokenizer/white_space.h"

namespace dsa {
namespace {

// All 25 characters of Unicode 15 that have the property.
constexpr std::string_view kSpaceCharacters[] = {
    "\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u0085", "\u00a0", "\u1680",
    "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008",
    "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

}  // namespace

std::size_t LeadingSpaceBytes(std::string_view text) {
  std::string_view rest = text;
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view space : kSpaceCharacters) {
      if (rest.starts_with(space)) {
        rest.remove_prefix(space.size());
        found = true;
      }
    }
  }
  return text.size() - rest.size();
}

std::size_t TrailingSpaceBytes(std::string_view text) {
  std::string_view rest = text;
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view space : kSpaceCharacters) {
      if (rest.ends_with(space)) {
        rest.remove_suffix(space.size());
        found = true;
      }
    }
  }
  return text.size() - rest.size();
}

}  // namespace dsa
