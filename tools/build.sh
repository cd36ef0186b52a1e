#!/usr/bin/env bash
# build.sh PRESET [TARGET...]: configures where needed and builds; quiet unless something fails.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
shift
started=$SECONDS
mkdir -p build
log=build/$preset.log
configure() {
  cmake --preset "$preset" || return
  # Of a tree that another compiler built, CMake has just forgotten what the preset sets, sanitizers and all.
  ! grep -q 'require your cache to be deleted' "$log" || cmake --preset "$preset"
}
if ! { configure && cmake --build --preset "$preset" ${1:+--target "$@"}; } >"$log" 2>&1; then
  grep -E 'error|Error|FAILED|warning' "$log" | head -n 40 >&2 || true
  echo "error: building the preset $preset failed; full log: $log" >&2
  exit 1
fi
echo "built $preset in $((SECONDS - started)) s" >&2
