#!/usr/bin/env bash
# Results in a lower layer of an overlay, as a container's image ships them: `tests/root/overlay.sh target/release/moe-convert`, as root.
# The directory of such a result can't be renamed, nor exchanged with another. `--overwrite` replaces it all the same, and what a run left
# there that was killed is no hindrance.
source "$(dirname "$0")/lib.sh"
need_mounts

layers=$disk/layers
mount_layers() { # keeps what is in the lower layer
  mkdir -p "$layers/lower" "$layers/upper" "$layers/work" "$disk/top"
  mount -t overlay -o "lowerdir=$layers/lower,upperdir=$layers/upper,workdir=$layers/work,redirect_dir=off" overlay "$disk/top"
}
unmount_layers() {
  ! mountpoint -q "$disk/top" || umount "$disk/top"
  rm -rf "$layers/upper" "$layers/work"
}
trap 'unmount_layers; cleanup' EXIT

mount_tmpfs size=256m
mkdir -p "$layers/lower/deep"
if ! mount_layers 2>/dev/null; then
  echo "$script: SKIPPED, no overlay can be mounted here"
  [[ -z ${MOE_NO_SKIPS:-} ]] || exit 1
  exit 0
fi
unmount_layers

run upcycle golden/models/dense "$layers/lower/out"
cp -r "$layers/lower/out" "$layers/lower/deep/out"
run observe golden/models/moe "$layers/lower/stats"
# What runs left there that were killed while the image was made.
mkdir "$layers/lower/.out.partial-moe-convert"
echo half >"$layers/lower/.out.partial-moe-convert/model.safetensors"
echo half >"$layers/lower/.stats.partial-moe-convert"
mkdir "$layers/lower/deep/out.training"

overwrite() { # PASS NAME
  # The card says the model's name.
  local alone=$work/alone/$1/${2##*/}
  mkdir -p "$work/alone/$1"
  [[ -e $alone ]] || run "$1" "$(original "$1")" "$alone"
  run "$1" "$(original "$1")" "$disk/top/$2" --overwrite
  expect "$1 over a result of a lower layer" test "$code" = 0
  expect "$1 over a result of a lower layer: it is another" test "$(bytes_of "$disk/top/$2")" = "$(bytes_of "$alone")"
}

mount_layers
for pass in prune quantize-rtn heal; do # the last two replace what is in the upper layer by now, as before
  overwrite "$pass" out
done
overwrite heal deep/out
overwrite observe stats
expect "something is left" test "$(names_in "$disk/top")" = "deep out stats"
unmount_layers

# With the file of a result changed, or one of another's among them, all of it stays.
for change in "echo mine >$disk/top/out/README.md" "touch $disk/top/out/thesis.tex"; do
  mount_layers
  eval "$change"
  run prune golden/models/moe "$disk/top/out" --overwrite
  expect "after $change" test "$code" = 2
  expect "after $change something is gone" test -s "$disk/top/out/model.safetensors.index.json" -o -s "$disk/top/out/model.safetensors"
  unmount_layers
done

# Killed while it removes the earlier one: the new one is whole, the next run is told so, and ends what was begun.
many=$work/many
cp -rL golden/models/moe "$many"
(cd "$many" && seq 10000 | xargs touch)
rm -r "${layers:?}/lower/out" "${layers:?}/lower/.out.partial-moe-convert"
run quantize-rtn "$many" "$layers/lower/out"
mount_layers
complete=$disk/top/.out.complete-moe-convert
start upcycle golden/models/dense "$disk/top/out" --overwrite
if stop_when [ -e "$complete" ]; then
  kill -KILL "$pid"
  finish 2>/dev/null # no word of bash's about it
  whole=$(bytes_of "$complete")
  run upcycle golden/models/dense "$disk/top/out"
  [[ $code == 2 ]] && says "$complete" || problem "what was left isn't named"
  run prune golden/models/moe "$disk/top/out" --overwrite --keep 7
  expect "a refused run brings nothing back" test "$(bytes_of "$complete")" = "$whole"
  line=("$binary" prune golden/models/moe --experts 12 --criterion random --output "$disk/top/out" --overwrite)
  code=0
  "${line[@]}" >/dev/null 2>"$log" || code=$?
  [[ $code == 0 ]] && says "a run was stopped while it replaced" || problem "the next run doesn't end what was begun"
  rm "$disk/top/.stats.partial-moe-convert" # of the lower layer again
  expect "something is left beside it" test "$(names_in "$disk/top")" = "deep out stats"
  killed="killed on the way, too"
else
  finish
  expect "upcycle over a result of many files" test "$code" = 0
  killed="no kill came in time"
fi
unmount_layers

passed "results in a lower layer; $killed"
