#!/usr/bin/env bash
# setup.sh LIST...: installs the Debian packages named in the lists, one a line.  Where it may not
# (not root, not Debian), it prints what is missing and fails.
set -euo pipefail

missing=()
while read -r package; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ $status == *' installed' ]] || missing+=("$package")
done < <(cat "$@" | sed 's/#.*//' | grep -v '^[[:space:]]*$')

((${#missing[@]} > 0)) || exit 0
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "error: missing Debian packages; as root: apt-get install -y ${missing[*]}" >&2
  exit 2
fi
echo "installing ${#missing[@]} packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "error: the packages could not be installed; full log: $log" >&2
  exit 2
fi
rm -f "$log"
