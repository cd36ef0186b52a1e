#!/usr/bin/env bash
# Tests, checks and benchmarks on a machine with a Hopper GPU, which needs a driver and CUDA's
# cuBLASLt but no network, no compiler and none of our packages.
#
#   tools/gpu.sh pack [--without-model]
#                                  here: build the cuda preset, pack it into build/gpu
#   build/gpu/gpu.sh run [STAGE...] [--log FILE]
#                                  there: run the stages, write the log (default: gpu.log)
#     start                        what the binary says of itself and of the device, and of a machine
#                                  without cuBLASLt; how long it takes from exec to SERVING
#     tests                        every operator against its equation
#     weights                      loaded and random weights, byte for byte the CPU's
#     self_test                    what runs before READY: it passes, and names planted faults
#     demo                         the three answers of `make demo`, served on the GPU
#     logits                       CUDA against the CPU: random models in float32, the small model
#     needles                      40 facts each in texts of 1K to 16K tokens, through the server;
#                                  few of them with a fault planted in the indexer
#     needles_ranks                the facts alone, on two GPUs as tensor or data ranks, on four as these or both
#     selections                   keys that the indexer selects, CUDA's beside the CPU's
#     schedules                    random requests over 64 streams, each as if it were alone
#     serving                      what a steady step is; NaN; a step that never ends
#     launches                     graph nodes of a layer of a decode step, at V3.2's sizes
#     speed                        one stream, 8 and 64 streams, first tokens of long prompts
#     faults                       a planted CUDA error ends the server as docs/gpu.md says
#     loading                      8 GB of weights, beside a plain read of their files
#     sanitize                     the operators under compute-sanitizer's tools, or under one:
#                                  memcheck, synccheck, initcheck, racecheck
#     bench                        time every operator, dsa_cuda_bench
#     step                         the decode step of the slice, and of its operators: below
#     position                     what a token costs at each position: the slice, and 8 layers of it
#                                  with 64 sequences, to be scaled to all layers; into position/
#     slice                        serve the slice: start-up, 64 sequences of 8K and 5 of 128K
#   Without a stage: all but needles_ranks, loading, sanitize, bench, step, position and slice.
#
# The slice is what one of 32 GPUs holds of DeepSeek-V3.2 with its experts spread over all:
# configs/models/deepseek-v32-ep32, random weights, 41 GB.
#
# The pack holds binaries, scripts, the small model, some text and the commit it was made from.
# Packed without the model, it runs inside a checkout, whose models/ it takes.
set -euo pipefail

pack() {
  cd "$(dirname "$0")/.."
  tools/build.sh cuda dsa kernels_cuda_tests dsa_gpu_checks dsa_cuda_bench dsa_step_bench
  local target=build/gpu
  rm -rf "$target"
  mkdir -p "$target"/{tools,configs,text,build}
  cp tools/gpu.sh "$target/"
  cp tools/{demo,serving}.sh "$target/tools/"
  cp -r configs/*.json configs/models "$target/configs/"
  cp tests/fixtures/quality/{passages.txt,questions.json} "$target/text/"
  if [[ ${1:-} != --without-model ]]; then
    mkdir -p "$target/models"
    cp -r models/dsa-tiny "$target/models/"
  fi
  local binary
  for binary in build/cuda/dsa build/cuda/tests/kernels/kernels_cuda_tests \
    build/cuda/tests/gpu/dsa_gpu_checks build/cuda/bench/dsa_cuda_bench \
    build/cuda/bench/dsa_step_bench; do
    strip -o "$target/$(basename "$binary")" "$binary"
  done
  git describe --always --dirty --abbrev=12 >"$target/commit"
  du -sh "$target"
}

start() {
  echo "date $(date -u +%Y-%m-%d)  commit $(cat commit)"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader
  uname -srm
  ./dsa version
  ./dsa inspect --model models/dsa-tiny --device cuda | tail -n 1
  # shellcheck source=tools/serving.sh
  source tools/serving.sh
  local which began took_ms
  for which in first second; do
    began=${EPOCHREALTIME/./}
    start_serving ./dsa 127.0.0.1:50078 start.log --model models/dsa-tiny --device cuda
    took_ms=$(((${EPOCHREALTIME/./} - began) / 1000))
    echo "$which start: SERVING $took_ms ms after exec"
    stop_serving
  done
  without_cublaslt ./dsa inspect --model models/dsa-tiny --device cuda | tail -n 1
  ((took_ms <= 4000)) || { echo "the second start took longer than 4 s"; return 1; }
}

# Runs a command that sees empty files in cuBLASLt's places, which takes a name space of its own, and
# so often root; prints what it says and its exit code.
without_cublaslt() {
  unshare --mount bash -c '
    empty=$(mktemp)
    while IFS= read -r library; do
      mount --bind "$empty" "$library"
    done < <(find / -name "libcublasLt.so*" -not -path "/proc/*" 2>/dev/null)
    code=0
    said=$("$@" 2>&1 >/dev/null) || code=$?
    echo "without cuBLASLt: exit $code: $said"' _ "$@" 2>&1
}

# Cases on small shapes, in groups that run side by side.  Under a sanitizer launches do not overlap,
# so the cases that show what a launch that does not wait sees, and that a rank fails beside others on
# its device, are left out.
declare -A groups=(
  [latent]='[latent_attention]~[real_sizes]'
  [masked]='[masked_attention]~[real_sizes]'
  [experts]='[routed_experts]~[real_sizes],[experts]~[routed_experts]~[real_sizes]'
  [gate]='[gate]~[real_sizes]'
  [select_keys]='[select_keys]~[real_sizes]~[sixteen_blocks]'
  [clusters]='[sixteen_blocks]~[real_sizes]'
  [fused]='[fused]~[real_sizes]'
  [linear]='[linear]~[real_sizes],[block_scaled_linear]~[real_sizes]'
  [sample]='[sample]~[real_sizes]'
  [topk]='[select_top_k]~[slow],[indexer_logits]'
  [collectives]='[collectives]~[slow]~[real_sizes]~[side_by_side]'
)
others='~[dependent_launch]~[slow]~[real_sizes]'
for group in "${!groups[@]}"; do
  for tag in $(grep -o '\[[a-z_]*\]' <<<"${groups[$group]}" | grep -v 'real_sizes\|slow'); do
    others+="~$tag"
  done
done
groups[others]=$others

sanitized() {  # TOOL GROUP [OPTION...]
  local tool=$1 group=$2 output report
  shift 2
  output=$(mktemp)
  local start=$SECONDS result=clean
  compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 "$@" ./kernels_cuda_tests \
    "${groups[$group]}" >"$output" 2>&1 || result="failed with $?"
  report="$tool $group: $result after $((SECONDS - start)) s; $(grep -aE \
    'All tests passed|test cases:' "$output" | tail -n 1)"
  [[ $result == clean ]] || report+=$'\n'$(grep -aE '^=========|FAILED' -A 4 "$output" |
    grep -av 'Host Frame' | head -n 40)
  echo "$report"  # in one piece: others write at the same time
  rm "$output"
  [[ $result == clean ]]
}

# One line per run: tool, group and options.  racecheck takes minutes for a group, so it begins first.
#
# memcheck takes the API's error for a kernel node that is not ours for a fault; the test that asks
# expects it.  cuBLASLt's kernels are left to memcheck and synccheck: racecheck ends in an internal
# error on them ("failed to handle a hardware exception"), and initcheck does not see what they
# store through the copy engine, so what reads their results looks uninitialised; nor, so it seems, what ranks
# store into each other's mailboxes, which are zeros when they join.  racecheck does not
# follow mbarriers that PTX waits for, so in latent and masked attention, and of the others' kernels in
# IndexScoresKernel, it reports every hand-over between producers and consumers: they are left out, and
# have the tests that compare their bits.  synccheck takes the first barrier behind a meeting of a cluster of
# 16 blocks for one of half a warp: it says so of a kernel that only meets, and not of 8 blocks.
sanitizer_runs() {
  local group
  for group in select_keys clusters sample others gate topk collectives; do
    echo "racecheck $group --kernel-name kns=dsa --kernel-name-exclude kns=IndexScoresKernel"
  done
  for group in "${!groups[@]}"; do
    echo "memcheck $group --report-api-errors no"
    [[ $group == clusters ]] || echo "synccheck $group"
    case $group in
      linear | experts | collectives) ;;
      *) echo "initcheck $group --kernel-name kns=dsa" ;;
    esac
  done
}

# Ten at once: each patches all kernels before the first one runs, and of twenty at once none was done
# after 70 s, where ten went through two tools in 105.  Kernels of ranks that share a device wait for each
# other, which beside other processes they can do for longer than a test allows: theirs run alone.
sanitize() {  # [TOOL]: only this one's
  local failed=0 tool group options job
  while read -r tool group options; do
    while (($(jobs -rp | wc -l) >= 10)); do
      wait -n || failed=1
    done
    # shellcheck disable=SC2086
    sanitized "$tool" "$group" $options &
  done < <(sanitizer_runs | grep "^${1:-}" | grep -v ' collectives')
  for job in $(jobs -p); do
    wait "$job" || failed=1
  done
  while read -r tool group options; do
    # shellcheck disable=SC2086
    sanitized "$tool" "$group" $options </dev/null || failed=1
  done < <(sanitizer_runs | grep "^${1:-}.* collectives")
  return $failed
}

slice_model=configs/models/deepseek-v32-ep32

# Serves sequences of a length, as many as it says at once.  Steps are bounded by their tokens alone, so
# prompts take few large ones: the first answer still runs when the last prompt has been computed.
serve_slice() {  # SEQUENCES TOKENS ANSWER [SHARED]
  local address=127.0.0.1:50077 start=${EPOCHREALTIME/./}
  start_serving ./dsa "$address" slice.log --model "$slice_model" --load dummy --device cuda \
    --max-num-seqs "$1" --max-model-len "$2" --max-num-batched-tokens 4096 --step-time-target-ms 0
  echo "$1 sequences of $2: ready after $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
  ./dsa bench serve --address "$address" --dataset random --requests "$1" --concurrency "$1" \
    --warmup-requests 0 --prefix-len "${4:-0}" --input-len $(($2 - $3)) --output-len "$3" \
    --output "slice-$1" | tail -n 30
  grep -a VmHWM "/proc/$server/status"
  nvidia-smi --query-gpu=memory.used --format=csv,noheader
  stop_serving
}

slice() {
  # shellcheck source=tools/serving.sh
  source tools/serving.sh
  serve_slice 64 8192 192
  serve_slice 5 131072 256
}

position() {
  local slice batch
  while read -r slice batch; do
    ./dsa bench position --model configs/models/deepseek-v32 --load dummy --slice "$slice" \
      --device cuda --quick --max-batch "$batch" --commit "$(cat commit)" \
      --output "position/$slice"
  done <<<$'ep32 64\nep32,layers=8 64'
}

stage() {
  case $1 in
    start) start ;;
    tests) ./kernels_cuda_tests ;;
    demo) tools/demo.sh ./dsa cuda ;;
    weights | self_test | logits | needles | selections | schedules | serving | launches | speed | loading)
      ./dsa_gpu_checks "[$1]"
      ;;
    faults) ./dsa_gpu_checks "[faults]" ;;
    needles_ranks) ./dsa_gpu_checks "[.needles_ranks]" ;;
    sanitize) sanitize ;;
    racecheck | synccheck | initcheck | memcheck) sanitize "$1" ;;
    bench) ./dsa_cuda_bench ;;
    step) ./dsa_step_bench "$slice_model" 64 8192 1 8192 && ./dsa_step_bench "$slice_model" 5 131072 ;;
    position) position ;;
    slice) slice ;;
    *)
      echo "gpu.sh run: no stage '$1'" >&2
      return 2
      ;;
  esac
}

run() {
  local stages=() log=gpu.log
  while (($#)); do
    if [[ $1 == --log ]]; then
      log=$2
      shift
    else
      stages+=("$1")
    fi
    shift
  done
  ((${#stages[@]})) || stages=(start tests weights self_test demo logits needles
    selections schedules serving launches speed faults)
  log=$(realpath "$log")
  cd "$(dirname "$0")"
  [[ -e models ]] || ln -s ../../models models
  # cuBLASLt from the toolkit, wherever it is installed.
  local libraries
  libraries=$(dirname "$(find / -name 'libcublasLt.so.13*' -not -path '*/proc/*' 2>/dev/null | head -n 1)")
  export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  local failed=() one
  : >"$log"
  for one in "${stages[@]}"; do
    echo "== $one" | tee -a "$log"
    stage "$one" 2>&1 | tee -a "$log" || failed+=("$one")
  done
  echo "== done; failed: ${failed[*]:-none}" | tee -a "$log"
  ((${#failed[@]} == 0))
}

case ${1:-} in
  pack)
    shift
    pack "$@"
    ;;
  run)
    shift
    run "$@"
    ;;
  *)
    sed -n '2,/^set/{/^#/p}' "$0"
    exit 2
    ;;
esac
