#!/usr/bin/env bash
# limits.sh DSA DSA_ABUSE API_TESTS: how soon the small model serves, how soon a full server refuses,
# what it keeps in memory, how soon a cancelled stream's blocks are free, and health beside texts of
# 16 MB; bench/results/ has what it printed.  Three minutes; a machine that does nothing else.
set -euo pipefail

dsa=$1 abuse=$2 api_tests=$3
model=$(cd "$(dirname "$0")/../models/dsa-tiny" && pwd)
folder=$(mktemp -d)
server=
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT

echo "load average $(cut -d' ' -f1-3 /proc/loadavg)"
echo 'from exec until health says SERVING, s:'
for _ in 1 2 3 4 5; do
  started=$EPOCHREALTIME
  "$dsa" serve "$model" --device cpu --listen "unix:$folder/socket" 2>"$folder/log" &
  server=$!
  until [[ $("$dsa" healthcheck --address "unix:$folder/socket" 2>/dev/null) == SERVING ]]; do
    kill -0 "$server"
    sleep 0.02
  done
  awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", to - from }'
  kill "$server"
  wait "$server"
done
"$api_tests" 'cancel to free of *' 2>"$folder/log" | grep 'cancel to free, ms'
"$abuse" health 2>"$folder/log"
"$abuse" burst 2>"$folder/log"
