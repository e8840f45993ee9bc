use super::*;
use crate::cli::Cli;

fn refused(line: &str) -> String {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let command = called(&words);
    let given = spelled(&words, command.as_ref()).given;
    let error = match Cli::read(&words).err() {
        Some(Refusal::Clap(error)) => {
            let (error, words, command) = (&*error, words.as_slice(), command.as_ref());
            let refused = Refused { error, words, command, given };
            assert!(!refused.reason().what().contains("usage:"), "{line}");
            refused.with_usage()
        }
        Some(Refusal::Own(error)) => error,
        None => return "accepted".to_owned(),
    };
    format!("error: {error}")
}

#[test]
fn errors_of_clap_have_what_where_and_a_remedy() {
    assert_eq!(
        refused("moe-convert upcycle dense --experts 4"),
        "error: the following required arguments were not provided: --output <OUT> --top-k <K>\n  \
         usage:  moe-convert upcycle --output <OUT> --experts <N> --top-k <K> <MODEL>\n  \
         remedy: see moe-convert upcycle --help"
    );
    assert_eq!(
        refused("moe-convert verify model --memory-budget much"),
        "error: invalid value 'much' for '--memory-budget <SIZE>': \"much\" is not a size\n  \
         remedy: write it as 5GB, 8GiB, 500MiB or in bytes"
    );
}

/// Asserts that each line is refused: what is wrong comes first, and then the remedy.
#[track_caller]
fn all_refused(lines: &[(&str, &str, &str)]) {
    for (line, what, remedy) in lines {
        let error = refused(line);
        let (before, after) = error.split_once("\n  remedy: ").unwrap();
        assert!(before.contains(what) && after.contains(remedy), "{line}: {error}");
    }
}

#[test]
fn numbers_shares_and_sizes_that_others_write_have_a_way_on() {
    all_refused(&[
        (
            "moe-convert prune model -o out --keep x%",
            "'x%' for '--keep <SHARE>': not a number",
            "give a number",
        ),
        (
            "moe-convert prune model -o out --experts 50%",
            "not a whole number",
            "takes a number, not a share",
        ),
        (
            "moe-convert quantize model -o out --target-bits 50%",
            "not a number",
            "takes a number, not a share",
        ),
        ("moe-convert verify model --memory-budget 50%", "not a size", "write it as 5GB"),
        ("moe-convert verify model --memory-budget -5GB", "not a size", "write it as 5GB"),
        (
            "moe-convert upcycle model -o out --experts -4 --top-k 1",
            "not a whole number",
            "such as 4",
        ),
        (
            "moe-convert prune model -o out --seed 99999999999999999999",
            "too large",
            "a smaller number",
        ),
        (
            "moe-convert prune model -o out --keep much",
            "not a number",
            "see moe-convert prune --help",
        ),
        ("moe-convert prune m -o o --keep 1ee2%", "not a number", "give a number, such as"),
    ]);
}

#[test]
fn schemes_and_bits_that_others_write_have_a_way_on() {
    all_refused(&[
        (
            "moe-convert quantize model -o out --scheme w8a8",
            "no scheme \"w8a8\"",
            "fp8 is what engines run",
        ),
        ("moe-convert quantize model -o out --scheme w4a61", "no scheme", "give w4a16"),
        ("moe-convert quantize model -o out --scheme INT8", "no scheme", "w8a8"),
        ("moe-convert quantize model -o out --bits 6", "no scheme", "give --target-bits 6"),
        ("moe-convert quantize m -o o --bits 4.5", "\"4.5\"", "give one of w8a16"),
        ("moe-convert quantize m -o o --bits -4", "(given as --bits)", "give one of w8a16"),
        ("moe-convert quantize m -o o --bits=", "for '--scheme <", "give one of w8a16"),
    ]);
}

#[test]
fn options_that_exclude_each_other_have_a_way_on() {
    all_refused(&[
        (
            "moe-convert quantize model -o out --bits 4 --scheme w8a16",
            "--bits and --scheme are one option",
            "give --scheme alone",
        ),
        (
            "moe-convert prune model -o out --method reap --criterion ean",
            "--method and --criterion are one option",
            "give --criterion alone",
        ),
        (
            "moe-convert upcycle d -o o --expert a --expert-model b",
            "one option",
            "--expert-model alone",
        ),
        ("moe-convert eval m --data a --file b", "--data and --file are one", "--data alone"),
        (
            "moe-convert prune model -o out --plan p --method reap",
            "'--criterion",
            "leave --plan or --criterion out",
        ),
        (
            "moe-convert prune model -o out --plan p --keep 0.5",
            "'--keep",
            "leave --plan or --keep out",
        ),
    ]);
}

#[test]
fn options_and_commands_of_others_have_a_way_on() {
    all_refused(&[
        ("moe-convert eval model --held-out t", "'--held-out'", "give --data TEXT"),
        (
            "moe-convert quantize model -o out --ignore lm_head",
            "'--ignore'",
            "routed experts alone",
        ),
        ("moe-convert merge model -o out --n-experts 4", "'--n-experts'", "give --experts N"),
        ("moe-convert merge model --output-path x", "'--output-path'", "give -o OUT"),
        ("moe-convert quantize model -o out --dampin 1", "'--dampin'", "'--damping'"),
        (
            "moe-convert quantize model -o out --rigmarole 1",
            "'--rigmarole'",
            "see moe-convert quantize --help",
        ),
        ("moe-convert evaluate model", "'evaluate'", "moe-convert eval"),
        ("moe-convert convert model", "'convert'", "see moe-convert --help"),
        ("moe-convert run r.toml --overwrite", "goes with --junit", "or leave --overwrite"),
        ("moe-convert heal m -o o --data t --teacher m", "(given as --teacher)", "give --original"),
        ("moe-convert verify m --device gpu7", "unknown device \"gpu7\"", "give auto, cpu"),
    ]);
}

#[test]
fn flags_that_others_turn_on_and_off_have_a_way_on() {
    all_refused(&[
        ("moe-convert heal m -o o --pack True", "'True'", "leave True out: --pack alone"),
        (
            "moe-convert heal m -o o --pack=true",
            "'--pack' takes no value",
            "--pack alone turns it on",
        ),
        ("moe-convert heal m -o o --pack=off", "'off' is given", "leave =off out"),
        ("moe-convert heal m -o o --pack=FALSE", "'FALSE' is given", "leave --pack=FALSE out"),
        (
            "moe-convert quantize m -o o --no-act-order",
            "'--no-act-order'",
            "give --act-order=false",
        ),
        (
            "moe-convert quantize m -o o --act-order false",
            "'false'",
            "write it as --act-order=false",
        ),
        ("moe-convert heal m -o o --no-pack", "'--no-pack'", "unless --pack is given"),
        ("moe-convert prune m -o o --baseline", "'--baseline'", "unless --no-baseline is given"),
    ]);
}

#[test]
fn keys_of_recipes_have_their_names_here() {
    for (command, key, said) in [
        ("quantize", "nbits", Some("give scheme w4a16")),
        ("heal", "epochs", Some("give steps N")),
        ("heal", "peak-lr", Some("give learning-rate RATE")),
        ("prune", "keeep", None),
        ("prune", "output-dir", None),
    ] {
        let error = Error::new(Kind::Usage, "unknown").unknown_option(command, key);
        let found = key_instead(&error);
        let fits = said.map_or(found.is_none(), |said| {
            found.as_ref().is_some_and(|found| found.starts_with(said))
        });
        assert!(fits, "{command} {key}: {found:?}");
    }
    assert_eq!(key_instead(&Error::new(Kind::Usage, "the recipe has no step")), None);
}

/// Names that the command takes, whatever their source, are proposed for similar ones alone.
#[test]
fn what_is_most_alike_is_proposed() {
    for (line, proposed) in [
        ("prun", "subcommand exists: 'prune'"),
        ("hael", "subcommand exists: 'heal'"),
        ("hepl", "subcommand exists: 'help'"),
        ("verfy m", "subcommand exists: 'verify'"),
        ("eval m --max-token 5", "exists: '--max-tokens', which is now '--data-tokens'"),
        ("prune m --metod reap", "exists: '--method', which is now '--criterion'"),
        ("heal m --teachers t", "exists: '--teacher', which is now '--original-logits'"),
        ("eval m --againts o", "exists: '--against', which is now '--original'"),
        ("merge m --no-controls", "exists: '--no-control', which is now '--no-baseline'"),
        ("upcycle m --atention m", "exists: '--attention', which is now '--rest'"),
        ("prune m --num-expert 4", "exists: '--num-experts', which is '--experts'"),
        ("prune m --seeed 4", "exists: '--seed'\n"),
        ("prune m -o o --criterion rap", "a similar value exists: 'reap'"),
        ("prune m -o o --criterion magnitude", "see moe-convert prune"),
    ] {
        let error = refused(&format!("moe-convert {line}")) + "\n";
        assert!(error.contains(proposed), "{line}: {error}");
    }
}

#[test]
fn what_clap_proposes_is_the_remedy() {
    let error = refused("moe-convert quantise model");
    assert!(
        error.contains("unrecognized subcommand 'quantise'") && error.contains("remedy: a similar"),
        "{error}"
    );
    let error = refused("moe-convert prune model -o out --criterio reap");
    assert!(
        error.contains("unexpected argument '--criterio'") && error.contains("remedy: a similar"),
        "{error}"
    );
    let error = refused("moe-convert prune model -o out --criterion best");
    assert!(
        error.contains("[possible values: reap, ")
            && error.contains("\n  remedy: see moe-convert prune"),
        "{error}"
    );
}

#[test]
fn spellings_of_others_are_those_of_one_option() {
    for (line, same) in [
        ("prune m -o o --keep 75% --criterion REAP", "prune m -o o --keep 0.75 --criterion reap"),
        ("prune m -o o --num_experts=4", "prune m -o o --experts=4"),
        ("quantize m -o o --bits 4", "quantize m -o o --scheme w4a16"),
        ("quantize m -o o --scheme FP8_BLOCK", "quantize m -o o --scheme fp8-block"),
        ("quantize m -o o --scheme FP8_DYNAMIC", "quantize m -o o --scheme fp8"),
        ("quantize m -o o --scheme=Int4", "quantize m -o o --scheme=w4a16"),
        ("quantize m -o o --Group_Size -1", "quantize m -o o --group-size -1"),
        ("eval m --data t --dtype bfloat16", "eval m --data t --dtype bf16"),
        ("eval m --data t --min_agreement 99.5%", "eval m --data t --min-agreement 0.995"),
        ("merge m --output-dir o --topk 2", "merge m --output o --topk 2"),
        ("run r --set method=REAP --set bits=4", "run r --set method=REAP --set bits=4"),
        ("quantize m -o o --bits w8a16", "quantize m -o o --scheme w8a16"),
        ("upcycle m -o o --target Qwen2-MoE", "upcycle m -o o --target qwen2_moe"),
        ("report m --output_dir o", "report m --output o"),
        ("prune m --OUT o", "prune m --out o"),
    ] {
        let words = |line: &str| line.split(' ').map(Into::into).collect();
        let program = program();
        let command = program.find_subcommand(line.split(' ').next().unwrap()).unwrap();
        let respelled = crate::spelling::respell(words(line), command).ok().unwrap();
        assert_eq!((respelled.words, respelled.notes.len()), (words(same), 0));
    }
}

#[test]
fn values_are_read_in_any_case() {
    for line in [
        "verify m --device CPU",
        "verify m --device Cuda:0",
        "upcycle m --out o --experts 4 --top-k 2 --layers EVERY:2",
        "schema Receipt",
        "completions BASH",
        "eval m --data held=t --original o --domain held:MAX_KL=5",
        "eval m --data held=t --original o --domain held:min-agreement=99%",
        "observe m --data a --Data b --save-dir s",
        "logits m --tokens t --out-dir o",
    ] {
        let words = std::iter::once("moe-convert").chain(line.split(' '));
        assert!(Cli::read(words).is_ok(), "{line}");
    }
}

#[test]
fn names_of_earlier_versions_are_accepted_with_a_note() {
    for (line, note) in [
        ("prune m -o o --keep 0.5 --method reap", "--method is now --criterion"),
        ("merge m -o o --keep 0.5 --method ream", "--method is now --algorithm"),
        ("quantize m -o o --method=RTN", "--method is now --solver"),
        ("eval m --data t --against o", "--against is now --original"),
        ("eval m --data t --max_tokens=64", "--max_tokens is now --data-tokens"),
        (
            "distill m -o o --data t --learning-rate 1",
            "--learning-rate is now --relative-learning-rate",
        ),
        ("bench --tokens 64", "--tokens is now --data-tokens"),
    ] {
        let read = Cli::read(std::iter::once("moe-convert").chain(line.split(' ')));
        let notes = read.ok().map(|cli| cli.notes).unwrap();
        assert_eq!(notes, [format!("{note}; the old name goes with 0.3")].into(), "{line}");
    }
}
