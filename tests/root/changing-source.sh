#!/usr/bin/env bash
# Sources that change while they are read: `tests/root/changing-source.sh target/release/moe-convert`; needs no rights.
# The program is stopped, a file changed, and the program goes on. Then it fails and names the file, or its result is, to the
# last hash of its receipt, that of an undisturbed run on what was there before, or on what was there after.
source "$(dirname "$0")/lib.sh"

commands=("${passes[@]}" eval logits)
changes=(truncated replaced rewritten deleted)
moments=(opened halfway writing)
place=$work/run
output=$place/out
before=$work/before
after=$work/after
calibration=$text
text=$place/text
tried=0 met=0

truncated() { truncate --size=$(($(stat -c %s "$1") / 2)) "$1"; }
replaced() { cp "$after/${1#"$place"}" "$1.new" && mv "$1.new" "$1"; }
rewritten() { dd if="$after/${1#"$place"}" of="$1" bs=1M conv=notrunc status=none; }
deleted() { rm "$1"; }

opened() { holds "$place/source/model.safetensors"; }
halfway() { ((${EPOCHREALTIME/./} >= half)); } # through the time of an undisturbed run
writing() { # a result has its first bytes
  local hidden=$place/.out.partial-moe-convert shards
  shards=("$hidden"/*.safetensors)
  [[ -f $hidden || -s ${shards[0]} ]]
}

another() { # PASS FILE: makes `after`, where this file is another one, as valid, and runs the pass on it
  rm -rf "$after"
  cp -r "$before" "$after"
  local file=$after/$2
  case $2 in
    *.safetensors) # its later half is nothing but zeros
      local middle=$(($(stat -c %s "$file") / 2))
      dd if=/dev/zero of="$file" bs=$middle seek=1 count=1 conv=notrunc status=none
      ;;
    *config.json) sed -i 's/"bos_token_id": 0/"bos_token_id": 1/' "$file" ;;
    */tokenizer.json) echo >>"$file" ;;
    *) tr e a <"$before/$2" >"$file" ;;
  esac
  undisturbed "$1" "$after"
  bytes_after=$bytes
}

prepare() { # CONTENT
  rm -rf "$place"
  cp -r "$1" "$place"
}

undisturbed() { # PASS CONTENT: sets bytes
  prepare "$2"
  run "$1" "$place/source" "$output"
  expect "$1 fails undisturbed" test "$code" = 0
  bytes=$(bytes_of "$output")
}

disturbed() { # PASS FILE CHANGE MOMENT
  local what="$1, $2 is $3 when $4" left
  prepare "$before"
  half=$((${EPOCHREALTIME/./} + took / 2))
  tried=$((tried + 1))
  start "$1" "$place/source" "$output"
  if stop_when "$4"; then
    met=$((met + 1))
    "$3" "$place/$2"
    go_on
  fi
  finish
  if [[ $code == 0 ]]; then
    case $(bytes_of "$output") in
      "$bytes_before" | "$bytes_after") ;;
      *) problem "$what: it succeeds, and what its result claims was never there" ;;
    esac
    return
  fi
  expect_failure "$what" "$place/$2"
  [[ $1 != eval ]] || rm "$output"
  left=$(names_in "$place")
  [[ $left =~ ^(out.training )?(source)?( text)?$ ]] || problem "$what: it left $left"
}

further() { # FILE CHANGE MOMENT
  another "$pass" "$1"
  if [[ $2 == deleted ]]; then # a pass may do without it
    rm "$after/$1"
    prepare "$after"
    run "$pass" "$place/source" "$output"
    bytes_after=$(bytes_of "$output")
  fi
  disturbed "$pass" "$@"
}

for ((p = 0; p < ${#commands[@]}; p++)); do
  pass=${commands[p]}
  rm -rf "$before"
  mkdir "$before"
  cp -r "$(original "$pass")" "$before/source"
  cp "$calibration" "$before/text"
  began_at=${EPOCHREALTIME/./}
  undisturbed "$pass" "$before"
  took=$((${EPOCHREALTIME/./} - began_at))
  bytes_before=$bytes

  another "$pass" source/model.safetensors
  for ((c = 0; c < ${#changes[@]}; c++)); do
    moment=${moments[(p + c) % 3]}
    [[ $pass != eval || $moment != writing ]] || moment=halfway # it writes nothing
    disturbed "$pass" source/model.safetensors "${changes[c]}" "$moment"
  done
  # Files that are read at the start, and hashed or copied at the end.
  case $pass in
    upcycle) further source/generation_config.json replaced writing ;;
    prune) further source/tokenizer.json deleted halfway ;;
    merge) further text replaced writing ;;
    quantize-gptq) further source/tokenizer.json replaced halfway ;;
    quantize-rtn) further source/tokenizer.json deleted opened ;;
    distill) further source/config.json rewritten halfway ;;
    heal) further text deleted halfway ;;
  esac
done

expect "only $met of $tried changes met the program running" test $((2 * met)) -ge $tried
passed "${#commands[@]} commands, $met changes while they ran"
