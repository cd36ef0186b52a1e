#!/usr/bin/env bash
# Everything that continuous integration checks, in the order of how fast it fails:
# formatting, the optimised build, the sanitizers, the CUDA build and clang-tidy, the optimised build's tests.
set -euo pipefail
cd "$(dirname "$0")/.."
# On a machine that compiles all this for the first time, ccache would preprocess every source, and then
# the compiler once more: the compiler itself names the headers for ccache.
export CCACHE_DEPEND=1

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

# PRESET [TARGET...].  Headers are most of what is compiled, so up to eight sources are joined.  That each file
# includes what it uses is what tests/tidy reads.
optimised() {
  mkdir -p build
  cmake --preset "$1" -DDSA_JOIN_SOURCES=ON >"build/$1.log" || { tail -n 20 "build/$1.log" >&2; return 1; }
  tools/build.sh "$@"
}

sanitized() {  # PRESET CASES LEFT_OUT: runs the cases, prints failing ones
  local preset=$1 cases=$2 left_out=$3
  ctest --preset "$preset" -R "$cases" -E "$left_out" -j "$(nproc)" >"build/$preset-tests.log" 2>&1 || {
    tail -n 60 "build/$preset-tests.log" >&2
    return 1
  }
  tail -n 3 "build/$preset-tests.log" >&2
}

# As docker/Dockerfile builds: without Catch2, which is another one there.
without_tests() {
  cmake --preset cpu -B build/without-tests -DDSA_WITH_TESTS=OFF -DCMAKE_DISABLE_FIND_PACKAGE_Catch2=ON \
    >build/without-tests.log 2>&1 || { tail -n 20 build/without-tests.log >&2; return 1; }
}

tidied() {  # waits for clang-tidy, prints what it found
  wait "$tidy" || { cat build/tidy.log >&2; return 1; }
}

# Laws about bits, answers of the small model, planted faults and large counts, minutes long when
# sanitized; other cases touch the same memory.
arithmetic_cases=' bits|quality gate: |every planted model fault|a body that reads the host'
arithmetic_cases+='|masked attention agrees|of wide heads matches its equation|of a row depends on that row alone'
arithmetic_cases+='|the self-test (passes|sees|names a plain)|limits of a header hold exactly'
arithmetic_cases+='|a narrow model on rank threads|faults of rank threads|faults of the exchange|agrees with the absorbed form'
arithmetic_cases+='|penalties and biases give the tokens of a reference|merging follows its definition'
# Each split of a reply in two, and each layout of each number of GPUs: 5 minutes of two cores.
arithmetic_cases+='|inspect predicts steps of GPUs|a call in a reply, a sentence before it|a stop string that may begin a block'
repeated_cases="$arithmetic_cases| no bit"  # on several threads: the thread sanitizer runs these
# What runs on more than one thread, gRPC aside, whose own library is not instrumented.  Caches, the
# scheduler and its simulator belong to one thread.
threaded_cases='^(engine|http|nccl|net)_tests:|thread|Every loaded value'
# Of those, what takes a minute there: of one thread, and of 48,000 tokens of JSON.
too_slow_cases='frames pass unchanged, and are refused alike|a client that does not read is dropped'
threaded_targets=(engine_tests http_tests kernels_tests nccl_tests net_tests checkpoint_tests model_tests)

# Of binaries that a GPU alone can run, and that the model and the scheduler would be compiled for once
# more, their own sources: half a minute on one core.
cuda_objects=({bench/CMakeFiles/dsa_step_bench.dir/cuda/step_{bench,sections},tests/model/CMakeFiles/ranks_cuda_tests.dir/ranks_{,speed_}cuda_test}.cpp.o)

step 'format' format
tools/clients.sh build/dsa install &  # waits for the network, mostly
install=$!
step 'build (cpu)' optimised cpu
ln -sf cpu/dsa build/dsa
step 'configure (without tests)' without_tests
installed=0
wait $install || installed=$?
case $installed in
  0) step 'clients' tools/clients.sh build/dsa run ;;
  3) echo '== clients: skipped, there is no package index' >&2 ;;
  *) exit "$installed" ;;
esac
step 'build (address and undefined-behaviour sanitizers)' tools/build.sh cpu-asan
step 'tests (address and undefined-behaviour sanitizers)' sanitized cpu-asan . "$repeated_cases"
step 'build (thread sanitizer)' tools/build.sh cpu-tsan "${threaded_targets[@]}"
step 'tests (thread sanitizer)' sanitized cpu-tsan "$threaded_cases" "$arithmetic_cases|$too_slow_cases"
# clang-tidy reads what the address sanitizer's build joined.  With the lowest priority it takes what the CUDA
# build leaves idle, and the rest of the machine behind it.  Not beside tests: a process that ends under a
# sanitizer yields its core, and a case of 36 processes took 60 s instead of 2 beside such neighbours.
set -m  # a process group of its own, so that a step that fails ends it
nice -n 19 tools/tidy.sh >build/tidy.log 2>&1 &
set +m
tidy=$!
trap 'kill -- "-$tidy" 2>/dev/null || true' EXIT
if command -v nvcc >/dev/null; then
  step 'build (cuda)' optimised cuda kernels_cuda_tests cuda_start_tests dsa_cuda_bench \
    dsa_collective_bench "${cuda_objects[@]}"
  step 'tests (cuda, no device)' build/cuda/tests/kernels/cuda_start_tests
else
  echo '== build (cuda): skipped, no nvcc' >&2
fi
step 'clang-tidy' tidied
step 'tests (cpu)' ctest --preset cpu -j "$(nproc)" --output-log build/cpu-tests.log
# Again, so that the runner's closing line closes the log.
grep -A 2 'tests passed' build/cpu-tests.log
