//! Results appear completely or not at all; these tests try to prevent that.

mod damaged;
mod meanwhile;
mod overwrite;
mod unmovable;

use super::commit::unconfirmed;
use super::names::aside;
use super::rename::replace_by_turns;
use super::*;
use crate::manifest::{MANIFEST_FILE, sha256_bytes};
use crate::result::{CARD_FILE, LOG_FILE, RECEIPT_FILE, RUN_FILE};
use crate::{Declared, Dtype, Seal, plan_shards};

const OPTIONS: Existing = Existing::Kept;
const OVERWRITE: Existing = Existing::Replaced;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_result_that_is_there_is_not_said_to_be_missing() {
    let error = unconfirmed(Path::new("out"), io::Error::from_raw_os_error(5)).to_string();
    assert!(
        error.contains("complete and in its place") && error.contains("file:   out"),
        "{error}"
    );
    assert!(error.contains("Input/output error") && !error.contains("cannot move"), "{error}");
}

/// A run record of a training with the log `log`.
fn run_record(log: &str) -> String {
    let hash = sha256_bytes(log.as_bytes());
    Seal::JSON.close(&format!(
        "{{\n  \"source\": \"\",\n  \"device\": \"Cpu\",\n  \"host\": \"h\",\n  \"unix_time\": 0,\n  \"timings\": [],\n  \
         \"training_log_sha256\": \"{hash}\"\n}}\n"
    ))
}

/// Creates a result.
fn finish(target: &Path, existing: Existing) -> Result<()> {
    finish_saying(target, existing, "{}")
}

fn finish_saying(target: &Path, existing: Existing, receipt: &str) -> Result<()> {
    let mut output = OutputDir::create(target, existing)?;
    output.write(RECEIPT_FILE, receipt.as_bytes())?;
    output.write(CARD_FILE, b"words")?;
    output.commit()
}

#[test]
fn nothing_appears_before_the_commit_and_nothing_stays_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    output.write(RECEIPT_FILE, b"{}").unwrap();
    assert!(!target.exists());
    drop(output);
    assert!(names(dir.path()).is_empty());

    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    output.write(RECEIPT_FILE, b"{}").unwrap();
    output.commit().unwrap();
    assert_eq!(names(&target), ["SHA256SUMS", "moe-convert.json"]);
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn what_was_removed_as_unfinished_cannot_appear() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    output.write(RECEIPT_FILE, b"{}").unwrap();
    let staging = output.path().to_owned();
    unfinished(&target).unwrap().remove(&staging);
    assert_eq!(output.commit().unwrap_err().kind(), Kind::Stopped);
    assert!(!target.exists());
}

#[test]
fn a_name_that_is_too_long_is_refused_with_the_length_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let error =
        OutputDir::check(&dir.path().join("a".repeat(234)), OPTIONS).unwrap_err().to_string();
    assert!(error.contains("234 bytes") && error.contains("at most 233 fit"), "{error}");
    finish(&dir.path().join("a".repeat(233)), OPTIONS).unwrap();
    finish(&dir.path().join("a".repeat(233)), OVERWRITE).unwrap();
}

#[test]
fn a_path_through_what_is_not_there_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["q/../q", "q/../out", "q/r/../../out", "q/.."] {
        let error = OutputDir::create(&dir.path().join(path), OPTIONS).unwrap_err();
        assert!(
            error.kind() == Kind::Usage && error.to_string().contains("remedy"),
            "{path}: {error}"
        );
        assert!(names(dir.path()).is_empty(), "{path}");
    }
    fs::create_dir(dir.path().join("q")).unwrap();
    finish(&dir.path().join("q/../out"), OPTIONS).unwrap();
    assert_eq!(names(dir.path()), ["out", "q"]);
}

#[test]
fn overwrite_refuses_by_name_what_it_has_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    finish(&target, OPTIONS).unwrap();
    for foreign in ["notes/thesis.tex", "weights.gguf", ".hidden"] {
        let path = target.join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "words").unwrap();
        let error = OutputDir::create(&target, OVERWRITE).unwrap_err();
        let named = foreign.split('/').next().unwrap();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(named), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "words");
        match path.parent() {
            Some(folder) if folder != target => fs::remove_dir_all(folder).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
    }
}

#[test]
fn what_appears_while_a_run_works_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    finish(&target, OPTIONS).unwrap();
    let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
    output.write(RECEIPT_FILE, b"{}").unwrap();
    fs::write(target.join("thesis.tex"), "words").unwrap();
    let error = output.commit().unwrap_err().to_string();
    assert!(error.contains("out-2"), "{error}");
    assert_eq!(fs::read_to_string(target.join("thesis.tex")).unwrap(), "words");
}

#[test]
fn a_link_is_not_a_result_whatever_it_leads_to() {
    let dir = tempfile::tempdir().unwrap();
    finish(&dir.path().join("out"), OPTIONS).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("out", &link).unwrap();
    let error = OutputDir::create(&link, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains("is a link"), "{error}");
}

#[test]
fn a_link_under_a_hidden_name_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.tex"), "words").unwrap();
    let target = dir.path().join("out");
    let hidden = dir.path().join(".out.partial-moe-convert");
    std::os::unix::fs::symlink(&precious, &hidden).unwrap();
    assert_eq!(OutputDir::create(&target, OPTIONS).unwrap_err().kind(), Kind::Io);
    fs::remove_file(&hidden).unwrap();
    std::os::unix::fs::symlink(precious.join("thesis.tex"), &hidden).unwrap();
    assert!(write_file_atomically(&target, |_| Ok(())).is_err());
    assert_eq!(fs::read_to_string(precious.join("thesis.tex")).unwrap(), "words");
}

#[test]
fn what_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    for options in [OPTIONS, OVERWRITE] {
        let mut output = OutputDir::create(&target, options).unwrap();
        output.write(RECEIPT_FILE, b"{}").unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis.tex"), "words").unwrap();
        let error = output.commit().unwrap_err().to_string();
        assert!(error.contains("out-2") && error.contains("in the way"), "{error}");
        assert_eq!(fs::read_to_string(target.join("thesis.tex")).unwrap(), "words");
        assert_eq!(names(&dir.path().join("out-2")), ["SHA256SUMS", "moe-convert.json"]);
        assert_eq!(names(dir.path()), ["out", "out-2"]);
        fs::remove_dir_all(&target).unwrap();
        fs::remove_dir_all(dir.path().join("out-2")).unwrap();
    }
}

#[test]
fn an_earlier_result_is_locked_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    finish(&target, OPTIONS).unwrap();
    // Takes the lock, like a run that removes what it has replaced.
    let removing = File::open(&target).unwrap();
    lock(&target, &removing).unwrap();
    let error = finish(&target, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains("out-2"), "{error}");
    drop(removing);
    finish(&target, OVERWRITE).unwrap();
    assert_eq!(names(dir.path()), ["out", "out-2"]);
}

#[test]
fn without_an_exchange_of_names_both_results_are_whole_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    finish(&target, OPTIONS).unwrap();
    let staging = dir.path().join("new");
    finish_saying(&staging, OPTIONS, "{\"new\": 1}").unwrap();
    // An earlier run was killed while it removed this.
    fs::create_dir(aside(&target)).unwrap();
    assert_eq!(replace_by_turns(&staging, &target).unwrap(), aside(&target));
    assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{\"new\": 1}");
    assert_eq!(fs::read_to_string(aside(&target).join(RECEIPT_FILE)).unwrap(), "{}");
    // If the new one can't be moved, the earlier one stays where it was.
    assert!(replace_by_turns(&staging, &target).is_err());
    assert_eq!(names(dir.path()), ["out"]);
    // After a kill between the renames, the next run finds the earlier result at its path again.
    fs::rename(&target, aside(&target)).unwrap();
    assert_eq!(finish(&target, OPTIONS).unwrap_err().kind(), Kind::Usage);
    assert_eq!(names(dir.path()), ["out"]);
    assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{\"new\": 1}");
    fs::rename(&target, aside(&target)).unwrap();
    finish(&target, OVERWRITE).unwrap();
    assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{}");
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn a_second_run_on_the_same_output_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let first = OutputDir::create(&target, OPTIONS).unwrap();
    for refused in [OutputDir::create(&target, OPTIONS).map(drop), OutputDir::check_idle(&target)] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("another run"), "{message}");
    }
    drop(first);
    OutputDir::check_idle(&target).unwrap();
}

#[test]
fn nothing_is_written_through_what_takes_the_hidden_directory_s_place() {
    let dir = tempfile::tempdir().unwrap();
    let (target, elsewhere) = (dir.path().join("out"), dir.path().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    output.write(RECEIPT_FILE, b"{}").unwrap();
    // Two files of weights, with an index that says which tensors they have.
    let tensor =
        |name: &str| Declared { name: name.into(), dtype: Dtype::U8, shape: vec![1 << 20] };
    let mut writer =
        output.writer(plan_shards(&[tensor("a"), tensor("b")], 1 << 20).unwrap()).unwrap();
    let hidden = output.path().to_owned();
    fs::rename(&hidden, dir.path().join("aside")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &hidden).unwrap();
    writer.push("a", &[1; 1 << 20]).unwrap();
    writer.push("b", &[2; 1 << 20]).unwrap();
    writer.finish().unwrap();
    assert!(names(&dir.path().join("aside")).len() == 4, "{:?}", names(&dir.path().join("aside")));
    assert_eq!(output.write(CARD_FILE, b"words").unwrap_err().kind(), Kind::Mismatch);
    assert_eq!(output.commit().unwrap_err().kind(), Kind::Mismatch);
    assert!(names(&elsewhere).is_empty() && !target.exists());
}

#[test]
fn what_a_killed_run_has_left_is_removed_unless_a_run_writes_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    OutputDir::remove_leftover(&target).unwrap();
    let running = OutputDir::create(&target, OPTIONS).unwrap();
    OutputDir::remove_leftover(&target).unwrap();
    assert!(running.path().exists());
    let hidden = running.path().to_owned();
    drop(running);
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("half"), "").unwrap();
    OutputDir::remove_leftover(&target).unwrap();
    assert!(!hidden.exists());
}
