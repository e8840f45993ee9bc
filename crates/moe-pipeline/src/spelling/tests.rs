use std::collections::BTreeSet;

use super::*;
use crate::recipe::command_of;

fn spelled(command: &str, written: &str) -> Option<String> {
    option(written, command_of(command).unwrap()).map(|spelled| spelled.option)
}

#[test]
fn names_of_others_and_of_earlier_versions_lead_to_one_option() {
    for (command, written, now) in [
        ("prune", "method", Some("criterion")),
        ("merge", "method", Some("algorithm")),
        ("quantize", "Method", Some("solver")),
        ("merge", "no_control", Some("no-baseline")),
        ("prune", "keep_mass", Some("keep-mass")),
        ("prune", "num_local_experts", Some("experts")),
        ("upcycle", "num_experts_per_tok", Some("top-k")),
        ("upcycle", "top_k", Some("top-k")),
        ("quantize", "bits", Some("scheme")),
        ("quantize", "group-size", None),
        ("distill", "lr", None),
        ("distill", "max-steps", None),
        ("prune", "num_samples", None),
    ] {
        assert_eq!(spelled(command, written).as_deref(), now, "{command} {written}");
    }
    let bits = option("wbits", command_of("quantize").unwrap()).unwrap();
    assert_eq!((bits.value("4"), bits.is_earlier), ("w4a16".to_owned(), false));
    for written in ["w4a16", "-4", "", "4.5"] {
        assert_eq!(bits.value(written), written, "only a number of bits is made a scheme");
    }
}

/// No earlier name or alias hides an existing option, and each leads to one.
#[test]
fn every_other_name_is_one() {
    for (commands, was, now) in earlier::RENAMED {
        for command in *commands {
            // Recipes have no step for this command; `usage/tests.rs` checks it.
            let Some(command) = command_of(command) else {
                assert_eq!(*command, "bench");
                continue;
            };
            assert!(!has(command, was) && has(command, now), "{} {was}", command.get_name());
        }
    }
    let mut names = BTreeSet::new();
    for (name, option) in aliases::all() {
        assert!(names.insert(name) && name == folded(name), "{name}");
        let commands = crate::recipe::all_commands().into_iter().filter_map(command_of);
        let mut fitting = commands.filter(|command| alias(name, command).is_some());
        let is_common = ["threads", "output"].contains(&option);
        assert!(is_common || fitting.next().is_some(), "{name} → {option}");
    }
}

/// A command, an option, what is given, and what it is now, if another.
const SPELLED: [(&str, &str, &str, Option<&str>); 15] = [
    ("prune", "criterion", "REAP", Some("reap")),
    ("prune", "criterion", "Leave_One_Out", Some("leave-one-out")),
    ("prune", "criterion", "reap", None),
    ("prune", "criterion", "best", None),
    ("prune", "keep", "75%", Some("0.75")),
    ("prune", "keep", "33.3 %", Some("0.333")),
    ("prune", "keep", "1e2%", Some("1")),
    ("prune", "keep", "7.5E1 %", Some("0.75")),
    ("prune", "keep", "1ee2%", None),
    ("upcycle", "target", "Qwen2_MoE", Some("qwen2_moe")),
    ("upcycle", "target", "qwen2-moe", Some("qwen2_moe")),
    ("upcycle", "target", "qwen2_moe", None),
    ("prune", "keep", "much%", None),
    ("prune", "experts", "50%", None),
    ("heal", "train", "Router,EXPERTS", Some("router,experts")),
];

#[test]
fn values_have_one_spelling() {
    for (command, option, text, now) in SPELLED {
        let of = command_of(command).unwrap();
        let arg = of.get_arguments().find(|arg| arg.get_long() == Some(option)).unwrap();
        assert_eq!(value(text, arg).as_deref(), now, "{command} --{option} {text}");
    }
}

/// The guide's table has every accepted name with its option, and no others.
#[test]
fn the_guide_lists_what_is_accepted() {
    let guide = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/coming-from.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let mut listed = BTreeSet::new();
    let table = guide.split("| option here |").nth(1).unwrap();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let mut cells = row.split('|').skip(1);
        let options = cells.next().unwrap();
        let option = options.split('`').nth(1).unwrap().trim_start_matches('-');
        let option = option.split(' ').next().unwrap();
        for name in cells.next().unwrap().split('`').skip(1).step_by(2) {
            let name = folded(name.trim_start_matches('-').split(' ').next().unwrap());
            listed.insert((name, option.to_owned()));
        }
    }
    let accepted: BTreeSet<_> =
        aliases::all().map(|(name, option)| (name.to_owned(), option.to_owned())).collect();
    assert_eq!(listed, accepted);
}
