#!/usr/bin/env bash
# setup.sh LIST...: installs the Debian packages named in the lists, one a line; of "a | b" the first
# that the system knows.  Where it may not (not root, not Debian), it prints what is missing and fails.
set -euo pipefail

is_installed() {
  [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null || true) == *' installed' ]]
}

missing=()
while read -r line; do
  for package in ${line//|/ }; do
    ! is_installed "$package" || continue 2
  done
  missing+=("$line")
done < <(cat "$@" | sed 's/#.*//' | grep -v '^[[:space:]]*$')

((${#missing[@]} > 0)) || exit 0
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "error: missing Debian packages; as root: apt-get install -y ${missing[*]%% *}" >&2
  exit 2
fi
echo "installing ${#missing[@]} packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install() {
  apt-get update || return
  local chosen=() line package wanted
  for line in "${missing[@]}"; do
    wanted=${line%% *}
    for package in ${line//|/ }; do
      ! apt-cache show "$package" >/dev/null 2>&1 || { wanted=$package; break; }
    done
    chosen+=("$wanted")
  done
  apt-get install -y --no-install-recommends "${chosen[@]}"
}
if ! install >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "error: the packages could not be installed; full log: $log" >&2
  exit 2
fi
rm -f "$log"
