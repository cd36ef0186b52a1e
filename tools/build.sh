#!/usr/bin/env bash
# build.sh PRESET [TARGET...]: configures where needed and builds; quiet unless something fails.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
shift
started=$SECONDS
mkdir -p build
log=build/$preset.log
if ! { cmake --preset "$preset" && cmake --build --preset "$preset" ${1:+--target "$@"}; } >"$log" 2>&1; then
  grep -E 'error|Error|FAILED|warning' "$log" | head -n 40 >&2 || true
  echo "error: building the preset $preset failed; full log: $log" >&2
  exit 1
fi
echo "built $preset in $((SECONDS - started)) s" >&2
