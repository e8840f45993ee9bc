#!/usr/bin/env bash
# Two at one output: `tests/root/second-run.sh target/release/moe-convert`; needs no rights.
# The first run of every pass is stopped while it works. A second one is refused, however it asks, and the first then finishes
# as if it had been alone. What somebody else puts in the output's place meanwhile stays.
source "$(dirname "$0")/lib.sh"

output=$work/out/out
hidden=$work/out/.out.partial-moe-convert
mkdir "$work/out" "$work/alone"

# The first run stops itself at the first file or folder that it waits for to be on the disk, however fast or slow it is: all that is
# written is written under its lock, and has no name of its own yet.
stops=$work/stops.so
cc -shared -fPIC -o "$stops" -x c - <<'C'
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
int fsync(int file) {
  static int has_stopped;
  if (!__atomic_exchange_n(&has_stopped, 1, __ATOMIC_SEQ_CST)) raise(SIGSTOP);
  return syscall(SYS_fsync, file);
}
C

is_stopped() { [[ $(<"/proc/$pid/stat") == *") T "* ]]; } 2>/dev/null

at_work() { # it holds a lock
  local locks
  read -r -d '' locks </proc/locks || true
  [[ $locks =~ FLOCK\ +ADVISORY\ +WRITE\ $pid\  ]]
}

first() { # PASS FURTHER…: sets first
  LD_PRELOAD=$stops start "$1" "$(original "$1")" "$output" "${@:2}"
  first=$pid
  until is_stopped; do
    if ! runs; then
      finish
      problem "$1: it ends without a word to the disk"
      rm -rf "$output"
      return 1
    fi
    sleep 0.01
  done
  at_work || problem "$1: it holds no lock"
}

second() { # PASS FURTHER…
  pid=
  start "$1" "$(original "$1")" "$output" "${@:2}"
  finish
  expect_failure "$1, a second time" "another run" "$output"
  [[ ! -e $output ]] || problem "$1, a second time: it wrote"
}

first_finishes() { # sets code
  pid=$first
  go_on
  finish
}

for pass in "${passes[@]}"; do
  run "$pass" "$(original "$pass")" "$work/alone/out"
  first "$pass" || continue
  second "$pass"
  second "$pass" --overwrite
  [[ $pass == observe ]] || second "$pass" --resume
  first_finishes
  expect "$pass, the first" test "$code" = 0
  expect "$pass, the first: the result is another" test "$(bytes_of "$output")" = "$(bytes_of "$work/alone/out")"
  expect "$pass: something is left" test "$(names_in "$work/out")" = out
  rm -rf "$work/alone/out" "$output" "$hidden"
done

# Nobody asked for a folder to be replaced that came meanwhile; with --overwrite, only results may be.
for further in --seed=0 --overwrite; do
  first upcycle $further || continue
  mkdir "$output"
  echo precious >"$output/thesis"
  first_finishes
  expect_failure "upcycle $further, whose place is taken meanwhile" "$output"
  expect "upcycle $further takes the place of somebody's work" test -s "$output/thesis"
  rm -rf "$output"
done

# What was replaced is removed under the hidden name: who begins then must not lose what it writes there. Either may be refused.
removing() { [[ -e $hidden && ! -e $output/old ]]; }
has_shards() { [[ $(echo "$hidden"/model-*-of-*) != *\** ]]; }
# Many files take long to remove; only what a run has written is a result's, such as files that lay beside the source's weights.
many=$work/many
cp -rL golden/models/moe "$many"
(cd "$many" && touch old && seq 10000 | xargs touch)
run quantize-rtn "$many" "$output"
start upcycle golden/models/dense "$output" --overwrite
first=$pid
if stop_when removing; then
  start upcycle golden/models/dense "$output" --overwrite
  last=$pid
  stop_when has_shards || true
  first_finishes
  pid=$last
  go_on
fi
finish
[[ $code == 0 ]] || expect_failure "the last of two that replace a result" "another run" "$output"
[[ $(bytes_of "$output") != unsound* ]] || problem "two that replace a result: half of one is there"

passed "${#passes[@]} passes"
