#!/usr/bin/env bash
# clang-tidy over our C++ sources, from the compile commands of the cpu preset.  A file that was
# clean is not checked again until it, a header of ours or the rules change.
set -euo pipefail
cd "$(dirname "$0")/.."

stamps=build/tidy
mkdir -p "$stamps"
context=$(cat .clang-tidy $(git ls-files '*.h') | sha256sum | cut -c1-16)

check() {
  local source=$1
  local key
  key=$(sha256sum "$source" | cut -c1-16)
  local stamp=$stamps/$key-$context
  [[ -e $stamp ]] && return 0
  local report
  if report=$(clang-tidy-14 --quiet -p build/cpu "$source" 2>/dev/null); then
    touch "$stamp"
  else
    echo "$report"
    return 1
  fi
}
export -f check
export stamps context

# Generated sources and test sources are left out: Catch2's macros are not ours.
git ls-files '*.cpp' | grep -v '^tests/' | grep -v '^common/fmt_library' |
  xargs -P "$(nproc)" -I{} bash -c 'check {}'
