//! Results that appear whole or not at all, and what keeps them from it.

use super::rename::replace_by_turns;
use super::*;
use crate::result::{CARD_FILE, LOG_FILE, RECEIPT_FILE, RUN_FILE};

const OPTIONS: Existing = Existing::Kept;
const OVERWRITE: Existing = Existing::Replaced;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_result_that_is_there_is_not_said_to_be_missing() {
    let error = unconfirmed(Path::new("out"), io::Error::from_raw_os_error(5)).to_string();
    assert!(error.contains("complete and in its place") && error.contains("file:   out"), "{error}");
    assert!(error.contains("Input/output error") && !error.contains("cannot move"), "{error}");
}

/// What differs from run to run.
const RUN: &str = r#"{"source": "", "device": "Cpu", "unix_time": 0, "timings": []}"#;

/// Makes a result.
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
fn overwrite_replaces_own_results_only() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    fs::create_dir(&target).unwrap();
    let thesis = target.join("thesis.tex");
    fs::write(&thesis, "").unwrap();
    assert_eq!(OutputDir::create(&target, OPTIONS).unwrap_err().kind(), Kind::Usage);
    assert_eq!(OutputDir::create(&target, OVERWRITE).unwrap_err().kind(), Kind::Usage);
    // A mark alone makes nobody else's files ours.
    fs::write(target.join(RECEIPT_FILE), "").unwrap();
    let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains("SHA256SUMS"), "{error}");
    fs::remove_dir_all(&target).unwrap();
    finish(&target, OPTIONS).unwrap();
    finish(&target, OVERWRITE).unwrap();
    fs::write(target.join(RUN_FILE), RUN).unwrap();
    finish(&target, OVERWRITE).unwrap();
    assert_eq!(names(&target), ["README.md", "SHA256SUMS", "moe-convert.json"]);
    assert_eq!(names(dir.path()), ["out"]);
    // An empty folder is nobody's loss.
    fs::remove_dir_all(&target).unwrap();
    fs::create_dir(&target).unwrap();
    finish(&target, OVERWRITE).unwrap();
}

#[test]
fn overwrite_keeps_changes_to_what_it_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let thesis = dir.path().join("thesis");
    fs::write(&thesis, "{}").unwrap();
    let other_sums = format!("{}  zzz\n", "0".repeat(64));
    finish(&target, OPTIONS).unwrap();
    let sums = fs::read_to_string(target.join(MANIFEST_FILE)).unwrap();
    for (name, text) in [
        (CARD_FILE, "a card that somebody has edited"),
        (RECEIPT_FILE, "{\"tool\": {\"build\": \"x\"}}"),
        (RUN_FILE, "{\"runs\": 7}"),
        (RUN_FILE, &RUN.replace("{", "{\"notes\": \"mine\", ")),
        (LOG_FILE, "{\"step\": 1}\n"),
        (MANIFEST_FILE, &format!("{other_sums}{sums}")),
    ] {
        let before = fs::read(target.join(name)).ok();
        fs::write(target.join(name), text).unwrap();
        let error = OutputDir::create(&target, OVERWRITE).map(drop).expect_err(name);
        assert!(error.kind() == Kind::Usage && error.to_string().contains("remedy"), "{name}: {error}");
        assert_eq!(fs::read_to_string(target.join(name)).unwrap(), text);
        match before {
            Some(bytes) => fs::write(target.join(name), bytes).unwrap(),
            None => fs::remove_file(target.join(name)).unwrap(),
        }
    }
    for name in [CARD_FILE, RECEIPT_FILE, MANIFEST_FILE, RUN_FILE] {
        let before = fs::read(target.join(name)).ok();
        let _ = fs::remove_file(target.join(name));
        std::os::unix::fs::symlink(&thesis, target.join(name)).unwrap();
        assert!(OutputDir::create(&target, OVERWRITE).is_err(), "{name} is a link");
        fs::remove_file(target.join(name)).unwrap();
        before.into_iter().for_each(|bytes| fs::write(target.join(name), bytes).unwrap());
    }
    finish_saying(&target, OVERWRITE, "{\"training\": {}}").unwrap();
    fs::write(target.join(LOG_FILE), "{\"step\": 1, \"loss\": 2}\na note\n").unwrap();
    assert!(OutputDir::create(&target, OVERWRITE).unwrap_err().to_string().contains(LOG_FILE));
    fs::write(target.join(LOG_FILE), "{\"step\": 1, \"loss\": 2}\n").unwrap();
    finish(&target, OVERWRITE).unwrap();
}

#[test]
fn overwrite_keeps_weights_that_somebody_has_put_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let weights = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "sub/vocab.zip", "x.bin"];
    let make = || {
        let mut output = OutputDir::create(&target, OVERWRITE)?;
        for name in weights {
            output.write(name, name.as_bytes())?;
        }
        output.write(RECEIPT_FILE, b"{}")?;
        output.write(CARD_FILE, b"words")?;
        output.commit()
    };
    make().unwrap();
    for name in weights {
        let path = target.join(name);
        // In place, and under the time that it had before.
        let modified = path.metadata().unwrap().modified().unwrap();
        fs::write(&path, "mine").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        let error = make().unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(name), "{name}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::write(&path, name).unwrap();
        // A rewritten file of the same content is nobody's loss.
        make().unwrap();
    }
}

#[test]
fn large_weights_are_hashed_only_where_they_changed_after_the_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    let large = "model.safetensors";
    let file = File::create(output.path().join(large)).unwrap();
    file.set_len(earlier::SMALL_BYTES + 1).unwrap();
    // A wrong hash shows whether it was looked at.
    output.add_hashes([(large.to_owned(), "0".repeat(64))]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    output.write(RECEIPT_FILE, b"{}").unwrap();
    output.write(CARD_FILE, b"words").unwrap();
    output.commit().unwrap();
    OutputDir::check(&target, OVERWRITE).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    // What is moved there has an old time of writing.
    fs::rename(target.join(large), dir.path().join("aside")).unwrap();
    fs::rename(dir.path().join("aside"), target.join(large)).unwrap();
    assert!(OutputDir::check(&target, OVERWRITE).unwrap_err().to_string().contains(large));
}

#[test]
fn what_replaces_a_result_is_as_private_and_what_is_protected_stays() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let allow = |name: &str, mode| {
        fs::set_permissions(target.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |name: &str| target.join(name).metadata().unwrap().mode() & 0o7777;
    finish(&target, OPTIONS).unwrap();
    allow("", 0o750);
    allow(RECEIPT_FILE, 0o640);
    allow(CARD_FILE, 0o600);
    allow(MANIFEST_FILE, 0o600);
    let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
    assert_eq!(output.path().metadata().unwrap().mode() & 0o777, 0o700);
    output.write(RECEIPT_FILE, b"{}").unwrap();
    output.write(CARD_FILE, b"words").unwrap();
    output.write("sub/new.json", b"words").unwrap();
    output.commit().unwrap();
    let modes = ["", RECEIPT_FILE, CARD_FILE, MANIFEST_FILE, "sub/new.json"].map(mode);
    assert_eq!(modes, [0o750, 0o640, 0o600, 0o600, 0o600]);
    for (name, protected, allowed) in [("", 0o555, 0o755), ("sub", 0o555, 0o755), (CARD_FILE, 0o444, 0o644)] {
        allow(name, protected);
        let error = OutputDir::check(&target, OVERWRITE).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains("write-protected"), "{name}: {error}");
        allow(name, allowed);
    }
    finish(&target, OVERWRITE).unwrap();
}

#[test]
fn a_name_that_is_too_long_is_refused_with_the_length_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let error = OutputDir::check(&dir.path().join("a".repeat(234)), OPTIONS).unwrap_err().to_string();
    assert!(error.contains("234 bytes") && error.contains("233 are left"), "{error}");
    finish(&dir.path().join("a".repeat(233)), OPTIONS).unwrap();
    finish(&dir.path().join("a".repeat(233)), OVERWRITE).unwrap();
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
    // What comes while the run works is kept, too.
    let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
    output.write(RECEIPT_FILE, b"{}").unwrap();
    fs::write(target.join("thesis.tex"), "words").unwrap();
    let error = output.commit().unwrap_err().to_string();
    assert!(error.contains("out-2"), "{error}");
    assert_eq!(fs::read_to_string(target.join("thesis.tex")).unwrap(), "words");
    // A link is nobody's result, whatever it leads to.
    std::os::unix::fs::symlink("out-2", dir.path().join("link")).unwrap();
    assert!(OutputDir::create(&dir.path().join("link"), OVERWRITE).unwrap_err().to_string().contains("is a link"));
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
    // Somebody removes it, as a run does that has replaced it.
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
    // What was being removed when an earlier run was killed.
    fs::create_dir(aside(&target)).unwrap();
    assert_eq!(replace_by_turns(&staging, &target).unwrap(), aside(&target));
    assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{\"new\": 1}");
    assert_eq!(fs::read_to_string(aside(&target).join(RECEIPT_FILE)).unwrap(), "{}");
    // A new one that can't be moved leaves the earlier one where it was.
    assert!(replace_by_turns(&staging, &target).is_err());
    assert_eq!(names(dir.path()), ["out"]);
    // A run that was killed between the renames: the next one has the earlier result in its way again.
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
    let hidden = output.path().to_owned();
    fs::rename(&hidden, dir.path().join("aside")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &hidden).unwrap();
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
