// An answer's bytes around its body, as RFC 9112 writes them.
#pragma once

#include "server/http/transport.h"

#include <string>
#include <string_view>

namespace dsa {

// Up to the empty line.  `lines` are further headers, each with its line end, among them the one
// that says where the body ends unless the connection's end does.
std::string ResponseHead(const HttpResponse& response, std::string_view lines, bool keep_alive);

// `bytes` as a chunk of a body; nothing where there are none, since an empty chunk is the last.
std::string AsChunk(std::string_view bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace dsa
