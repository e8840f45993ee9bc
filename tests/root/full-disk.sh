#!/usr/bin/env bash
# A disk that is really full: `tests/root/full-disk.sh target/release/moe-convert`, as root (it mounts a tmpfs).
# Without the right to mount it says so and passes; tests/it/full_disk.rs covers failing writes without rights.
source "$(dirname "$0")/lib.sh"
need_mounts

output=$disk/out
hidden=$disk/.out.partial-moe-convert
ballast=$disk/ballast
bytes=$((64 << 20)) # of a disk with room
met=0

on_disk() { # PASS FURTHER…
  run "$1" "$(original "$1")" "$output" "${@:2}"
}

expect_nothing() { # WHAT: but what a training goes on from
  local left
  left=$(names_in "$disk")
  [[ $left =~ ^(ballast)?\ ?(out.training)?$ ]] || problem "$1: it left $left"
}

# Too small from the start: refused before the first byte, with both figures. The second would hold the tensors alone, but
# config, cards and tokenizer are counted too.
for size in 4194304 14680064; do
  mount_tmpfs "size=$size"
  on_disk upcycle
  expect_failure "a disk of $size bytes" "$output" $size free
  expect_nothing "a disk of $size bytes"
done

# An earlier result survives a replacement that does not fit beside it.
mount_tmpfs size=20m
on_disk upcycle --seed 1
before=$(bytes_of "$output")
on_disk upcycle --seed 2 --overwrite
expect_failure "a replacement" "$output" free
expect "the earlier result is another" test "$(bytes_of "$output") $(names_in "$disk")" = "$before out"

# Enough bytes, but one file too few, whichever that is, until it succeeds.
for pass in upcycle observe; do
  for ((inodes = 2; inodes < 40; inodes++)); do
    mount_tmpfs "size=$bytes,nr_inodes=$inodes"
    on_disk "$pass"
    ((code)) || break
    expect_failure "$pass, $inodes inodes" "$disk/" "No space left on device" "free space"
    expect_nothing "$pass, $inodes inodes"
  done
  expect "$pass with $inodes inodes" test $code = 0 -a "$(names_in "$disk")" = out
done

at_work() { # PASS: observe writes at its end alone
  if [[ $1 == observe ]]; then holds golden/models/moe/model.safetensors; else [[ -e $hidden ]]; fi
}

leave() { # BYTES: fills the disk but for these, what is there already included
  local free=$(($(stat -f -c '%a * %S' "$disk"))) fill=$((bytes - $1))
  ((fill < free)) || fill=$free
  ((fill == 0)) || fallocate -l "$fill" "$ballast"
}

# Somebody else fills the disk once a run is at work, and later makes room again.
for pass in "${passes[@]}"; do
  mount_tmpfs "size=$bytes"
  on_disk "$pass"
  expect "$pass, with room" test $code = 0
  undisturbed=$(bytes_of "$output")
  size=$(du --block-size=1 --summarize "$output" | cut -f1)
  for room in 0 $((size / 3)) $((size - 4096)); do
    rm -rf "$output" "$ballast"
    what="$pass with room for $room of $size bytes"
    start "$pass" "$(original "$pass")" "$output"
    if ! stop_when at_work "$pass" || [[ -e $output ]]; then
      go_on
      finish
      continue
    fi
    met=$((met + 1))
    leave "$room"
    go_on
    finish
    expect_failure "$what" "$disk" "free space"
    expect_nothing "$what"
  done
  rm -rf "$output" "$ballast"
  again=()
  [[ ! -e $output.training ]] || again=(--resume)
  on_disk "$pass" "${again[@]}"
  expect "$pass, with room again" test $code = 0
  expect "$pass, with room again: the result is another" test "$(bytes_of "$output")" = "$undisturbed"
  expect "$pass, with room again: something is left" test "$(names_in "$disk")" = out
done

tried=$((3 * ${#passes[@]}))
expect "only $met of $tried runs were met" test $((2 * met)) -ge $tried
passed "a disk that fills by bytes under ${#passes[@]} passes, met $met times, and by files"
