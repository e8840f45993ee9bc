//! Tests results that can't be moved, and are removed for the new one.

use super::*;
use crate::staging::unmovable::{in_order, replace_by_removal};

/// A result in `dir` under `name`, with a file in a folder, a run record and a log. `receipt`
/// distinguishes it from others.
fn made_with_folder(dir: &Path, name: &str, receipt: &str) -> PathBuf {
    const LOG: &str = "{\"step\": 1, \"loss\": 2}\n";
    let target = dir.join(name);
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    output.write("model.safetensors", b"weights").unwrap();
    output.write("sub/deep/vocab.json", b"{}").unwrap();
    output.write(RECEIPT_FILE, receipt.as_bytes()).unwrap();
    output.write(CARD_FILE, b"words").unwrap();
    output.write_unlisted(RUN_FILE, run_record(LOG).as_bytes()).unwrap();
    output.write_unlisted(LOG_FILE, LOG.as_bytes()).unwrap();
    output.commit().unwrap();
    target
}

fn receipt(target: &Path) -> String {
    fs::read_to_string(target.join(RECEIPT_FILE)).unwrap()
}

#[test]
fn a_result_that_cannot_be_moved_is_removed_for_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let target = made_with_folder(dir.path(), "out", "{\"old\": 1}");
    let new = made_with_folder(dir.path(), "new", "{\"new\": 1}");
    let listed = EarlierResult::look(&target, &|_| ()).unwrap();
    replace_by_removal(&new, &target, listed.names()).unwrap();
    assert_eq!(
        (names(dir.path()), receipt(&target).as_str()),
        (vec!["out".to_owned()], "{\"new\": 1}")
    );
    // What appeared in the meantime stays, and nothing of the new result is lost.
    let new = made_with_folder(dir.path(), "new", "{\"newer\": 1}");
    fs::write(target.join("thesis.tex"), "words").unwrap();
    let left = replace_by_removal(&new, &target, listed.names()).unwrap_err();
    assert_eq!(left.why.unwrap().kind(), io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(
        (names(&target), receipt(&left.new).as_str()),
        (vec!["thesis.tex".to_owned()], "{\"newer\": 1}")
    );
}

/// A result in `dir` under "out", and a complete one that waits to replace it.
struct Waiting {
    target: PathBuf,
    complete: PathBuf,
}

fn waiting(dir: &Path, before: &str) -> Waiting {
    let target = made_with_folder(dir, "out", before);
    let complete = dir.join(".out.complete-moe-convert");
    fs::rename(made_with_folder(dir, "new", "{\"new\": 1}"), &complete).unwrap();
    Waiting { target, complete }
}

/// Takes the first `done` steps of the removal of `target`, as a run that was killed behind them.
fn removed_up_to(target: &Path, done: usize) {
    let names = ["model.safetensors", "sub/deep/vocab.json", CARD_FILE, RECEIPT_FILE];
    let steps = in_order(names.into_iter());
    assert_eq!(steps.len(), STEPS);
    for removed in steps.iter().take(done) {
        let path = target.join(&removed.name);
        let result = if removed.is_dir { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        result.unwrap_or_else(|e| panic!("{removed:?} after {done} steps: {e}"));
    }
    if done > steps.len() {
        fs::remove_dir(target).unwrap();
    }
}

/// How many steps it takes to remove what is in the folder of such a result.
const STEPS: usize = 9;

#[test]
fn what_is_left_of_a_replacement_by_removal_is_ended_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    for done in 0..=STEPS + 1 {
        let target = waiting(dir.path(), "{\"old\": 1}").target;
        removed_up_to(&target, done);
        let there = dir.path().join("out").exists();
        // Without --overwrite nothing is lost, and the error says where the new result is.
        let error = OutputDir::create(&target, OPTIONS).unwrap_err();
        let told = if there { ".out.complete-moe-convert" } else { "brought back" };
        assert!(error.kind() == Kind::Usage && error.to_string().contains(told), "{done}: {error}");
        // A dry run succeeds and changes nothing.
        OutputDir::check(&target, OVERWRITE).unwrap();
        let output = OutputDir::create(&target, OVERWRITE).unwrap();
        assert_eq!(output.brought_back(), there, "{done}");
        drop(output);
        assert_eq!(
            (names(dir.path()), receipt(&target).as_str()),
            (vec!["out".to_owned()], "{\"new\": 1}"),
            "{done}"
        );
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn while_a_run_replaces_by_removal_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Waiting { target, complete } = waiting(dir.path(), "{}");
    let working = File::open(&complete).unwrap();
    lock(&target, &working).unwrap();
    let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
}

#[test]
fn nothing_is_removed_for_a_waiting_result_that_is_no_longer_complete() {
    let dir = tempfile::tempdir().unwrap();
    let Waiting { target, complete } = waiting(dir.path(), "{}");
    for (name, text) in
        [("model.safetensors", "mine"), ("model.safetensors", ""), ("thesis.tex", "words")]
    {
        fs::write(complete.join(name), text).unwrap();
        let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
        assert!(error.contains("complete-moe-convert") && error.contains("remedy"), "{error}");
        assert_eq!((names(dir.path()).len(), receipt(&target).as_str()), (2, "{}"));
    }
}
