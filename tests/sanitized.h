// Whether a sanitizer watches this build.  What is slow by its mere amount (tokens, streams,
// rounds) is then cut to an amount that takes the same paths; the optimised build does all of it.
#pragma once

namespace dsa::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace dsa::testing
