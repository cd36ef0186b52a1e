#!/usr/bin/env bash
# soak.sh DSA DSA_SOAK SECONDS CALLS_PER_S FOLDER: serves a small random model and lets mixed traffic
# with cancels, deadlines and slow readers at it; FOLDER/soak.log says what the server held meanwhile.
# Exits with 0 where nothing grew, every call ended as it should and the server drained.
set -euo pipefail

dsa=$1 soak=$2 seconds=$3 calls_per_s=$4 folder=$5
mkdir -p "$folder"
"$dsa" make-checkpoint --output "$folder/model" --hidden 128 --layers 2 --context 4096 >/dev/null

"$dsa" serve "$folder/model" --device cpu --threads 1 --listen 127.0.0.1:0 --log-format json \
  --kv-cache-memory-bytes 67108864 2>"$folder/server.log" &
server=$!
trap 'kill -TERM "$server" 2>/dev/null || true' EXIT
port=
for ((attempt = 0; attempt < 600 && ${#port} == 0; ++attempt)); do
  sleep 0.1
  kill -0 "$server" 2>/dev/null || break
  port=$(sed -n 's/.*"message":"ready".*"port":\([0-9]*\).*/\1/p' "$folder/server.log")
done
if [[ -z $port ]]; then
  tail -n 5 "$folder/server.log" >&2
  echo "error: the server did not start; its log: $folder/server.log" >&2
  exit 1
fi

failed=0
"$soak" "127.0.0.1:$port" "$server" "$seconds" "$calls_per_s" >"$folder/soak.log" || failed=$?
kill -TERM "$server" || true
wait "$server" || failed=$?
trap - EXIT
tail -n 24 "$folder/soak.log"
exit "$failed"
