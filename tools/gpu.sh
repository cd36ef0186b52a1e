#!/usr/bin/env bash
# Tests and benchmarks on a machine with a Hopper GPU, which needs a driver and CUDA's cuBLASLt but
# no network, no compiler and none of our packages.
#
#   tools/gpu.sh pack              here: build the cuda preset, pack it into build/gpu
#   build/gpu/gpu.sh run [OPTION...] [LOG]
#                                  there: run the tests, write the log (default: gpu.log)
#     --sanitize                   and once more under compute-sanitizer's tools
#     --bench                      and time every op, dsa_cuda_bench
#
# The pack holds the binaries, this script and the commit it was made from.
set -euo pipefail

pack() {
  cd "$(dirname "$0")/.."
  tools/build.sh cuda kernels_cuda_tests dsa_cuda_bench
  rm -rf build/gpu
  mkdir -p build/gpu
  cp tools/gpu.sh build/gpu/
  for binary in build/cuda/tests/kernels/kernels_cuda_tests build/cuda/bench/dsa_cuda_bench; do
    strip -o "build/gpu/$(basename "$binary")" "$binary"
  done
  git describe --always --dirty --abbrev=12 >build/gpu/commit
  du -sh build/gpu
}

machine() {
  echo "commit $(cat commit)"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader
  uname -srm
}

sanitized() {  # TOOL [OPTION...] [CASES]
  local tool=$1
  shift
  local options=()
  while [[ ${1:-} == --* ]]; do
    options+=("$1" "$2")
    shift 2
  done
  echo "== compute-sanitizer $tool ${options[*]} $*"
  compute-sanitizer --tool "$tool" --error-exitcode 9 "${options[@]}" ./kernels_cuda_tests "$@"
}

run() {
  local sanitize=0 bench=0
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --sanitize) sanitize=1 ;;
      --bench) bench=1 ;;
      *)
        echo "gpu.sh run: option '$1', expected --sanitize or --bench" >&2
        exit 2
        ;;
    esac
    shift
  done
  local log
  log=$(realpath "${1:-gpu.log}")
  cd "$(dirname "$0")"
  # cuBLASLt from the toolkit, wherever it is installed.
  local libraries
  libraries=$(dirname "$(find / -name 'libcublasLt.so.13*' -not -path '*/proc/*' 2>/dev/null | head -n 1)")
  export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  {
    machine
    echo '== tests'
    ./kernels_cuda_tests
    if ((sanitize)); then
      # cuBLASLt's kernels are left to memcheck and synccheck: racecheck ends in an internal error
      # on them ("failed to handle a hardware exception"), and initcheck does not see what they
      # store through the copy engine.  Our kernels in those cases use no shared memory.
      sanitized memcheck
      sanitized synccheck
      sanitized racecheck --kernel-name kns=dsa "~[slow]~[linear]~[block_scaled_linear]"
      sanitized initcheck --kernel-name kns=dsa "~[linear]~[block_scaled_linear]"
    fi
    if ((bench)); then
      echo '== bench'
      ./dsa_cuda_bench
    fi
    echo '== done'
  } 2>&1 | tee "$log"
}

case ${1:-} in
  pack) pack ;;
  run)
    shift
    run "$@"
    ;;
  *)
    sed -n '2,11p' "$0"
    exit 2
    ;;
esac
