#!/usr/bin/env bash
# Everything that continuous integration checks, in the order of how fast it fails:
# formatting, the optimised build and its tests, the sanitizers, the CUDA build, clang-tidy.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
  local name=$1
  shift
  local started=$SECONDS
  echo "== $name" >&2
  "$@"
  echo "== $name: $((SECONDS - started)) s" >&2
}

format() {
  git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-14 --dry-run --Werror
}

sanitized() {  # PRESET: builds it and runs its tests, without their passing lines
  tools/build.sh "$1"
  ctest --preset "$1" -j "$(nproc)" --progress >"build/$1-tests.log" 2>&1 || {
    tail -n 60 "build/$1-tests.log" >&2
    return 1
  }
  tail -n 4 "build/$1-tests.log"
}

step 'format' format
step 'build (cpu)' tools/build.sh cpu
ln -sf cpu/dsa build/dsa
step 'address and undefined-behaviour sanitizers' sanitized cpu-asan
step 'thread sanitizer' sanitized cpu-tsan
if command -v nvcc >/dev/null; then
  step 'build (cuda)' tools/build.sh cuda
else
  echo '== build (cuda): skipped, no nvcc' >&2
fi
step 'clang-tidy' tools/tidy.sh
# Last, so that the runner's closing line closes the log.
step 'tests (cpu)' ctest --preset cpu -j "$(nproc)"
