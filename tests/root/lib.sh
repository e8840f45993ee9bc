# For the scripts beside it, which get the binary's path: each pass on a built-in model, run, stopped midway, and looked at.
# shellcheck shell=bash
set -Eeuo pipefail
binary=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
script=$(basename "$0" .sh)
began=$SECONDS

work=$(mktemp -d)
# In memory, if we may: what is flushed to a disk takes long where others use it too.
mount -t tmpfs -o mode=0755 tmpfs "$work" 2>/dev/null || chmod 755 "$work"
disk=$work/disk # where a tmpfs is mounted
log=$work/log   # what moe-convert says
mkdir "$disk"
line=() pid= code=0 problems=0

cleanup() {
  cd /
  [[ -z $pid ]] || kill -KILL "$pid" 2>/dev/null || true
  ! mountpoint -q "$disk" || umount "$disk"
  ! mountpoint -q "$work" || umount "$work"
  rm -rf "$work"
}
trap cleanup EXIT
trap 'echo "$script: line $LINENO failed: $BASH_COMMAND" >&2' ERR

passes=(upcycle prune merge quantize-gptq quantize-rtn distill distill-trained heal observe)

original() { # PASS: its built-in model
  if [[ $1 == upcycle ]]; then echo golden/models/dense; else echo golden/models/moe; fi
}

text=golden/text/english.calibration.txt
options() { # PASS: sets line to the command without models
  local data=(--data "$text" --data-tokens 512 --sequence-length 64)
  case $1 in
    upcycle) line=(upcycle --experts 8 --top-k 2 --max-shard-size 2MB) ;;
    prune) line=(prune --experts 12 "${data[@]}") ;;
    merge) line=(merge --experts 12 --algorithm hc-smoe "${data[@]}") ;;
    quantize-gptq) line=(quantize --group-size 32 "${data[@]}") ;;
    quantize-rtn) line=(quantize --group-size 32 --solver rtn) ;;
    distill) line=(distill --steps 0 --down measured "${data[@]}") ;;
    distill-trained) line=(distill --steps 2 --down measured "${data[@]}") ;;
    heal) line=(heal --steps 2 --eval-every 1 --batch-tokens 256 "${data[@]}") ;;
    observe) line=(observe "${data[@]}") ;;
    eval) line=(eval --json --data "$text" --data-tokens 512) ;;
    logits) line=(logits --tokens golden/models/moe.tokens.json) ;;
    *) echo "$script: no options for $1" >&2 && return 1 ;;
  esac
}

start() { # PASS SOURCE OUTPUT FURTHER…: sets pid; eval prints its output
  options "$1"
  line=("$binary" "${line[0]}" "$2" "${line[@]:1}" --quiet "${@:4}")
  if [[ $1 == eval ]]; then
    "${line[@]}" >"$3" 2>"$log" &
  else
    line+=(--output "$3")
    "${line[@]}" >/dev/null 2>"$log" &
  fi
  pid=$!
}

finish() { # sets code
  code=0
  wait "$pid" || code=$?
  pid=
}

run() { # PASS SOURCE OUTPUT FURTHER…
  start "$@"
  finish
}

# Zombies have no program.
runs() { [[ -e /proc/$pid/exe ]]; }

stop_when() { # TEST…: stops the program as soon as the test holds, if it still runs then
  until "$@"; do
    runs || return 1
  done
  kill -STOP "$pid" 2>/dev/null && runs
}

holds() { # FILE: has it open
  local descriptor
  for descriptor in "/proc/$pid/fd/"*; do
    [[ ! $descriptor -ef $1 ]] || return 0
  done
  return 1
}

go_on() { kill -CONT "$pid" 2>/dev/null || true; }

problem() { # WORDS
  problems=$((problems + 1))
  {
    echo "$script: $1"
    echo "  command: ${line[*]}"
    echo "  exit code $code; it said:"
    sed 's/^/    /' "$log"
  } >&2
}

expect() { # WHAT TEST…
  "${@:2}" || problem "$1"
}

says() { # WORD
  grep -qF -- "$1" "$log"
}

expect_failure() { # WHAT WORDS…: exit code 1, with an error that has these words and a remedy
  local word wrong=
  [[ $code == 1 ]] || wrong=", not with exit code 1"
  for word in "${@:2}" remedy; do
    says "$word" || wrong+=", without \"$word\""
  done
  ! says panicked || wrong+=", by a panic"
  [[ -z $wrong ]] || problem "$1: it ends otherwise than it should$wrong"
}

names_in() { # FOLDER: all there is, on a line
  (cd "$1" && find . -mindepth 1 -maxdepth 1 -printf '%P\n' | sort | paste -sd ' ')
}

# What is the same after each run that was not disturbed. The manifest lists the receipt, and that the source's hashes.
bytes_of() { # RESULT
  if [[ -d $1 ]]; then
    (cd "$1" && sha256sum --quiet --check SHA256SUMS >/dev/null && sha256sum SHA256SUMS) || echo "unsound: $(names_in "$1")"
  elif [[ -f $1 ]]; then
    sha256sum <"$1"
  else
    echo nothing
  fi
}

mount_tmpfs() { # OPTIONS
  ! mountpoint -q "$disk" || umount "$disk"
  mount -t tmpfs -o "$1" tmpfs "$disk"
}

need_mounts() {
  mount_tmpfs size=4m 2>/dev/null && return
  echo "$script: SKIPPED, no right to mount a tmpfs here"
  [[ -z ${MOE_NO_SKIPS:-} ]] || exit 1
  exit 0
}

passed() { # WHAT
  if ((problems)); then
    echo "$script: $problems problems" >&2
    exit 1
  fi
  echo "$script: passed in $((SECONDS - began)) s: $1"
}
