#!/usr/bin/env bash
# Outputs that may not be written: `tests/root/read-only.sh target/release/moe-convert`, as root (it mounts a tmpfs).
# Each is refused before the work begins. What may be replaced keeps its group, or nobody gets more by another one.
source "$(dirname "$0")/lib.sh"
need_mounts

cp "$binary" "$work/moe-convert"
binary=$work/moe-convert
cp -r --parents golden/models golden/text "$work"
cd "$work" # which others can read, wherever the repository lies

refused() { # PASS OUTPUT WHO WORDS…
  local who=()
  [[ $3 == root ]] || who=(setpriv --reuid="$3" --regid="$3" --clear-groups)
  options "$1"
  line=(timeout 10 "${who[@]}" "$binary" "${line[0]}" "$(original "$1")" "${line[@]:1}" --output "$2")
  code=0
  "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
  expect_failure "$1" "$(dirname "$2")" "${@:4}"
  # A stage would come first. Notes may: they say what the plan is, which is made before anything else.
  [[ $(grep -vm1 '^note:' "$log") == error:* ]] || problem "$1: it is refused only after work was done"
}

mount_tmpfs size=64m
mount -o remount,ro "$disk"
for pass in "${passes[@]}" logits; do
  refused "$pass" "$disk/out" root "Read-only file system" "writable disk"
  [[ -z $(names_in "$disk") ]] || problem "$pass left something"
done

mount_tmpfs size=64m,mode=0755
for pass in "${passes[@]}" logits; do
  refused "$pass" "$disk/out" 65534 "Permission denied" "permissions"
  refused "$pass" "$disk/new/out" 65534
  [[ -z $(names_in "$disk") ]] || problem "$pass left something"
done

# Earlier results that others own, or have protected: refused before the work, and left as they are.
kept_back() { # NAME MODE WHO WORDS…
  chmod "$2" "$disk/$1"
  local before
  before=$(bytes_of "$disk/$1")
  for pass in prune observe; do
    if [[ $pass == observe ]]; then [[ -f $disk/$1 ]] || continue; else [[ -d $disk/$1 ]] || continue; fi
    options "$pass"
    line=(timeout 10 setpriv --reuid="$3" --regid="$3" --clear-groups "$binary" "${line[0]}" golden/models/moe "${line[@]:1}")
    line+=(--output "$disk/$1" --overwrite)
    code=0
    "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
    says "${*:4}" || code=0
    [[ $code == 2 ]] || problem "$pass over $1 with mode $2"
  done
  [[ $(bytes_of "$disk/$1") == "$before" ]] || problem "$1 with mode $2 was changed"
  [[ $(names_in "$disk") == "model stats" ]] || problem "something was left: $(names_in "$disk")"
}
mount_tmpfs size=256m,mode=0777
run prune golden/models/moe "$disk/model"
run observe golden/models/moe "$disk/stats"
kept_back model 755 65534 "no right to write"
kept_back stats 644 65534 "no right to write"
chown -R 65534:65534 "$disk/model" "$disk/stats"
kept_back model 555 65534 write-protected
kept_back stats 444 65534 write-protected

# In a sticky directory others may write to what they can't move away.
chown -R 65533:65533 "$disk/model" "$disk/stats"
chmod 1777 "$disk"
chmod 666 "$disk"/model/*
kept_back model 777 65534 "only its owner may move it"
kept_back stats 666 65534 "only its owner may move it"
chmod 777 "$disk"

# Nothing takes the name of what is mounted, be it of another file system or of the same.
mkdir "$disk/mounted"
for options in "-t tmpfs tmpfs" "--bind $disk/model"; do
  # shellcheck disable=SC2086
  mount $options "$disk/mounted"
  options prune
  line=(timeout 10 "$binary" "${line[0]}" golden/models/moe "${line[@]:1}" --output "$disk/mounted" --overwrite)
  code=0
  "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
  [[ $code == 2 ]] && says "such as $disk/mounted/mounted" || problem "prune to what is mounted by $options"
  umount "$disk/mounted"
done
rmdir "$disk/mounted"
touch "$disk/plan"
mount --bind "$disk/stats" "$disk/plan"
line=(timeout 10 "$binary" observe golden/models/moe --data "$text" --output "$disk/plan" --overwrite)
code=0
"${line[@]}" >"$work/stdout" 2>"$log" || code=$?
[[ $code == 2 ]] && says "a mount point" || problem "observe to a file that is mounted"
umount "$disk/plan"
rm -r "$disk/plan"

# What is mounted in an earlier result, or in what a killed run left, isn't removed with it.
cp -r golden/models/moe "$disk/mine"
cp "$text" "$disk/words"
before=$(find "$disk/mine" "$disk/words" -type f -exec sha256sum {} +)
hidden=$disk/.model.partial-moe-convert
mkdir -p "$hidden/deep" "$disk/model/deep"
for mount in "mine model/deep" "words model/README.md" "words model/run.json" "mine .model.partial-moe-convert/deep"; do
  read -r from to <<<"$mount"
  mount --bind "$disk/$from" "$disk/$to"
  options prune
  line=(timeout 10 "$binary" "${line[0]}" golden/models/moe "${line[@]:1}" --output "$disk/model" --overwrite)
  code=0
  "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
  [[ $code == 2 ]] && says "$disk/$to" && says "mounted here" || problem "prune over a result with a mount at $to"
  umount "$disk/$to"
  [[ $to != model/deep ]] || rmdir "$disk/$to"
  [[ $(find "$disk/mine" "$disk/words" -type f -exec sha256sum {} +) == "$before" ]] || problem "$from was changed"
done
rm -r "$disk/mine" "$disk/words" "$disk/model" "${hidden:?}"

# Nor is what is mounted where a training is saved.
mkdir "$disk/mine" "$disk/out.training"
cp "$text" "$disk/mine"
before=$(find "$disk/mine" -type f -exec sha256sum {} +)
for how in "" --overwrite --resume; do
  mount --bind "$disk/mine" "$disk/out.training"
  options heal
  # shellcheck disable=SC2206
  line=(timeout 10 "$binary" "${line[0]}" golden/models/moe "${line[@]:1}" --output "$disk/out" $how)
  code=0
  "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
  [[ $code == 2 ]] && says "$disk/out.training" && says "mounted here" || problem "heal $how with a mount at out.training"
  umount "$disk/out.training"
  [[ $(find "$disk/mine" -type f -exec sha256sum {} +) == "$before" ]] || problem "heal $how changed what is mounted at out.training"
  [[ ! -e $disk/out ]] || problem "heal $how wrote beside a mount at out.training"
done
rm -r "$disk/mine" "$disk/out.training"

# In a directory where names may be added and not changed (not every file system knows that), nothing could be completed.
mkdir "$disk/log"
for pass in prune observe; do
  chattr +a "$disk/log" 2>"$log" || break
  options "$pass"
  line=(timeout 10 "$binary" "${line[0]}" golden/models/moe "${line[@]:1}" --output "$disk/log/out")
  code=0
  "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
  [[ $code == 2 && -z $(names_in "$disk/log") ]] && says "chattr -a" || problem "$pass in a directory with chattr +a"
  # Protected while the run works: the result is kept, and where it lies is said.
  chattr -a "$disk/log"
  start "$pass" golden/models/moe "$disk/log/out"
  stop_when [ -e "$disk/log/.out.partial-moe-convert" ] || problem "$pass was over too soon"
  chattr +a "$disk/log"
  go_on
  finish
  expect_failure "$pass" "it is $disk/log/.out.partial-moe-convert" "rename $disk/log/.out.partial-moe-convert"
  expect "$pass kept its result" test -s "$disk/log/.out.partial-moe-convert"
  chattr -a "$disk/log"
  rm -r "$disk/log/.out.partial-moe-convert"
done
rmdir "$disk/log"

# A group that its user is in is given to what replaces a result; another one's rights are nobody's.
rights() { # FILE
  stat -c '%a %g' "$1"
}
run prune golden/models/moe "$disk/model"
for groups in 4711 4712; do
  chown -R 65534:4711 "$disk/model" "$disk/stats"
  chmod 2770 "$disk/model"
  chmod 640 "$disk"/model/* "$disk/stats"
  [[ $groups == 4711 ]] && wanted=("2770 4711" "640 4711") || wanted=("700 65534" "600 65534")
  for pass in prune observe; do
    options "$pass"
    [[ $pass == prune ]] && output=$disk/model || output=$disk/stats
    line=(setpriv --reuid=65534 --regid=65534 --groups="$groups" "$binary" "${line[0]}" golden/models/moe "${line[@]:1}")
    line+=(--output "$output" --overwrite)
    code=0
    "${line[@]}" >"$work/stdout" 2>"$log" || code=$?
    [[ $code == 0 ]] || problem "$pass of a user in $groups"
  done
  for file in model/model.safetensors model/run.json model/SHA256SUMS stats; do
    [[ $(rights "$disk/$file") == "${wanted[1]}" ]] || problem "$file of a user in $groups: $(rights "$disk/$file")"
  done
  [[ $(rights "$disk/model") == "${wanted[0]}" ]] || problem "the result of a user in $groups: $(rights "$disk/model")"
done

passed "a read-only disk and a foreign folder, each by $((${#passes[@]} + 1)) commands"
