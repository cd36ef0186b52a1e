#!/usr/bin/env bash
# clang-tidy over our C++ sources.  Most of its time goes into the headers that a source includes,
# so it takes the joined sources of the cpu-asan preset, which are up to eight of ours; tools/test.sh
# has built that preset by then.  What was clean is not checked again until a source of ours in it,
# any header of ours or the rules change.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=build/cpu-asan
stamps=build/tidy
mkdir -p "$stamps"
context=$(cat .clang-tidy $(git ls-files '*.h') | sha256sum | cut -c1-16)

check() {
  local source=$1
  local joined key
  joined=$(sed -n 's/^#include "\(.*\.cpp\)"$/\1/p' "$source")
  key=$(cat "$source" ${joined:-} | sha256sum | cut -c1-16)
  local stamp=$stamps/$key-$context
  [[ -e $stamp ]] && return 0
  local report
  if report=$(clang-tidy-14 --quiet -p "$preset" "$source" 2>/dev/null); then
    touch "$stamp"
  else
    echo "$report"
    return 1
  fi
}
export -f check
export preset stamps context

# Generated sources and test sources are left out: Catch2's macros are not ours.
sed -n 's/^ *"file": "\(.*\)"$/\1/p' "$preset/compile_commands.json" |
  grep -v -e "/generated/" -e "^$PWD/tests/" -e "^$PWD/$preset/tests/" -e '/dsa_proto' -e '/dsa_fmt.dir/' \
  -e '/dsa_spdlog.dir/' |
  xargs -P "$(nproc)" -I{} bash -c 'check {}'
