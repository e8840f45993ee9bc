#!/usr/bin/env bash
# A disk that is really full: `tests/root/full-disk.sh target/release/moe-convert`, as root (it mounts a tmpfs).
# Without the right to mount it says so and passes; tests/full_disk.rs covers failing writes without rights.
set -euo pipefail
binary=$(realpath "$1")
cd "$(dirname "$0")/../.."

disk=$(mktemp -d)
log=$(mktemp)
cleanup() {
  mountpoint -q "$disk" && umount "$disk"
  rm -rf "$disk" "$log"
}
trap cleanup EXIT

fail() {
  echo "full-disk: $1; moe-convert said:" >&2
  cat "$log" >&2
  exit 1
}

on_disk() { # TMPFS-OPTIONS
  ! mountpoint -q "$disk" || umount "$disk"
  mount -t tmpfs -o "$1" tmpfs "$disk"
}

upcycle() { # ARGUMENTS…: sets code
  code=0
  "$binary" upcycle golden/models/dense -o "$disk/moe" --experts 8 --top-k 2 "$@" >"$log" 2>&1 || code=$?
}

expect_refusal() { # WORDS…
  [[ $code == 1 ]] || fail "exit code $code instead of 1"
  local word
  for word in "$@" remedy; do
    grep -qF -- "$word" "$log" || fail "the message lacks \"$word\""
  done
  ! grep -q panicked "$log" || fail "it panicked"
  local left
  left=$(find "$disk" -mindepth 1)
  [[ -z $left ]] || fail "it left $left"
}

if ! on_disk size=4m 2>/dev/null; then
  echo "full-disk: skipped, no right to mount a tmpfs here"
  exit 0
fi

# Too small from the start: refused before the first byte, with both figures.
upcycle
expect_refusal "$disk/moe" 4194304 "free"
! grep -q '^write:' "$log" || fail "it began to write"

# Just too small: the tensors alone would fit, but config, cards and tokenizer are counted too.
on_disk size=14m
upcycle
expect_refusal "$disk/moe" 14680064 "free"

# Enough bytes, but inodes run out during the run: ENOSPC on the directory, the weights, and the files after them.
for inodes in 1 2 3 4 5; do
  on_disk "size=64m,nr_inodes=$inodes"
  upcycle
  expect_refusal "$disk/" "No space left on device" "free space"
done

# An earlier result survives a replacement that does not fit beside it.
on_disk size=20m
upcycle --seed 1
[[ $code == 0 ]] || fail "it does not fit in 20 MiB"
before=$(cd "$disk" && find . -type f -exec sha256sum {} + | sort)
upcycle --seed 2 --overwrite
[[ $code == 1 ]] || fail "exit code $code instead of 1"
[[ $(cd "$disk" && find . -type f -exec sha256sum {} + | sort) == "$before" ]] || fail "the earlier result changed"

echo "full-disk: passed"
