//! Tests what `--overwrite` replaces, and what it keeps.

use super::*;

#[test]
fn overwrite_replaces_own_results_only() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    fs::create_dir(&target).unwrap();
    let thesis = target.join("thesis.tex");
    fs::write(&thesis, "").unwrap();
    assert_eq!(OutputDir::create(&target, OPTIONS).unwrap_err().kind(), Kind::Usage);
    assert_eq!(OutputDir::create(&target, OVERWRITE).unwrap_err().kind(), Kind::Usage);
    // A receipt alone doesn't make other files ours.
    fs::write(target.join(RECEIPT_FILE), "").unwrap();
    let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains("SHA256SUMS"), "{error}");
    fs::remove_dir_all(&target).unwrap();
    finish(&target, OPTIONS).unwrap();
    finish(&target, OVERWRITE).unwrap();
    fs::write(target.join(RUN_FILE), run_record("")).unwrap();
    finish(&target, OVERWRITE).unwrap();
    assert_eq!(names(&target), ["README.md", "SHA256SUMS", "moe-convert.json"]);
    assert_eq!(names(dir.path()), ["out"]);
    // Replacing an empty folder loses nothing.
    fs::remove_dir_all(&target).unwrap();
    fs::create_dir(&target).unwrap();
    finish(&target, OVERWRITE).unwrap();
}

/// A result under "out", and a file beside it that somebody else wrote.
fn result_beside_a_thesis(dir: &Path) -> (PathBuf, PathBuf) {
    let (target, thesis) = (dir.join("out"), dir.join("thesis"));
    fs::write(&thesis, "{}").unwrap();
    finish(&target, OPTIONS).unwrap();
    (target, thesis)
}

#[test]
fn overwrite_keeps_changes_to_what_it_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let (target, _) = result_beside_a_thesis(dir.path());
    let other_sums = format!("{}  zzz\n", "0".repeat(64));
    let sums = fs::read_to_string(target.join(MANIFEST_FILE)).unwrap();
    for (name, text) in [
        (CARD_FILE, "a card that somebody has edited"),
        (RECEIPT_FILE, "{\"tool\": {\"build\": \"x\"}}"),
        (RUN_FILE, "{\"runs\": 7}"),
        (RUN_FILE, &run_record("").replacen('{', "{\"notes\": \"mine\", ", 1)),
        (RUN_FILE, &run_record("").replace("\"h\"", "{\"notes\": \"mine\"}")),
        (RUN_FILE, &run_record("").replace("\"h\"", "\"mine\"")),
        (RUN_FILE, r#"{"source": "", "device": "Cpu", "unix_time": 0, "timings": []}"#),
        (LOG_FILE, "{\"step\": 1}\n"),
        (MANIFEST_FILE, &format!("{other_sums}{sums}")),
    ] {
        assert_kept(&target, name, text);
    }
}

/// Writes `text` to the result's file `name`, asserts that --overwrite keeps it, and takes it back.
fn assert_kept(target: &Path, name: &str, text: &str) {
    let path = target.join(name);
    let before = fs::read(&path).ok();
    fs::write(&path, text).unwrap();
    let error = OutputDir::create(target, OVERWRITE).map(drop).expect_err(name);
    assert!(error.kind() == Kind::Usage && error.to_string().contains("remedy"), "{name}: {error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    match before {
        Some(bytes) => fs::write(&path, bytes).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
}

#[test]
fn overwrite_follows_no_link_in_the_place_of_what_it_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let (target, thesis) = result_beside_a_thesis(dir.path());
    for name in [CARD_FILE, RECEIPT_FILE, MANIFEST_FILE, RUN_FILE] {
        let before = fs::read(target.join(name)).ok();
        let _ = fs::remove_file(target.join(name));
        std::os::unix::fs::symlink(&thesis, target.join(name)).unwrap();
        assert!(OutputDir::create(&target, OVERWRITE).is_err(), "{name} is a link");
        fs::remove_file(target.join(name)).unwrap();
        before.into_iter().for_each(|bytes| fs::write(target.join(name), bytes).unwrap());
    }
}

/// The log of a training, and a result of it, whose run record says that the log is its own.
const LOG: &str = "{\"step\": 1, \"loss\": 2}\n";

fn make_trained(target: &Path) -> Result<()> {
    finish_saying(target, OVERWRITE, "{\"training\": {}}")
}

fn trained_result(dir: &Path) -> PathBuf {
    let target = dir.join("out");
    make_trained(&target).unwrap();
    fs::write(target.join(RUN_FILE), run_record(LOG)).unwrap();
    target
}

#[test]
fn a_log_of_a_training_is_what_its_run_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let target = trained_result(dir.path());
    for edited in [
        format!("{LOG}a note\n"),
        format!("{LOG}{{\"step\": 9, \"mine\": \"x\"}}\n"),
        LOG.replace("2}", "2, \"mine\": 1}"),
        LOG.replace('2', "1"),
    ] {
        fs::write(target.join(LOG_FILE), &edited).unwrap();
        let error = make_trained(&target).unwrap_err().to_string();
        assert!(error.contains(LOG_FILE), "{error}");
        assert_eq!(fs::read_to_string(target.join(LOG_FILE)).unwrap(), edited);
    }
    fs::write(target.join(LOG_FILE), LOG).unwrap();
    make_trained(&target).unwrap();
}

#[test]
fn a_log_without_the_record_of_its_run_is_nobody_s() {
    let dir = tempfile::tempdir().unwrap();
    let target = trained_result(dir.path());
    fs::write(target.join(LOG_FILE), LOG).unwrap();
    for run in [None, Some(run_record(LOG).replace("\"h\"", "\"mine\""))] {
        fs::remove_file(target.join(RUN_FILE)).unwrap();
        run.iter().for_each(|run| fs::write(target.join(RUN_FILE), run).unwrap());
        assert!(make_trained(&target).is_err());
        fs::write(target.join(RUN_FILE), run_record(LOG)).unwrap();
    }
    make_trained(&target).unwrap();
}

/// Weights, and files that may be weights.
const WEIGHTS: [&str; 4] =
    ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "sub/vocab.zip", "x.bin"];

fn make_weights(target: &Path) -> Result<()> {
    let mut output = OutputDir::create(target, OVERWRITE)?;
    for name in WEIGHTS {
        output.write(name, name.as_bytes())?;
    }
    output.write(RECEIPT_FILE, b"{}")?;
    output.write(CARD_FILE, b"words")?;
    output.commit()
}

#[test]
fn overwrite_keeps_weights_that_somebody_has_put_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    make_weights(&target).unwrap();
    for name in WEIGHTS {
        let path = target.join(name);
        // Written in place, with its earlier time of modification.
        let modified = path.metadata().unwrap().modified().unwrap();
        fs::write(&path, "mine").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        let error = make_weights(&target).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(name), "{name}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::write(&path, name).unwrap();
        // Replacing a rewritten file of the same content loses nothing.
        make_weights(&target).unwrap();
    }
}

#[test]
fn large_weights_are_hashed_once_whenever_they_were_changed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let large = "model.safetensors";
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    let file = File::create(output.path().join(large)).unwrap();
    file.set_len(earlier::SMALL_BYTES + 1).unwrap();
    output
        .add_hashes([(large.to_owned(), crate::sha256_file(&output.path().join(large)).unwrap())]);
    output.write(RECEIPT_FILE, b"{}").unwrap();
    output.write(CARD_FILE, b"words").unwrap();
    output.commit().unwrap();
    let hashed = std::sync::atomic::AtomicU64::new(0);
    let watch = |bytes| {
        hashed.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    drop(OutputDir::create_watched(&target, OVERWRITE, &watch).unwrap());
    assert!(hashed.into_inner() > earlier::SMALL_BYTES);
    // One file is changed in place; then all files, the receipt last, get a new time of change, as
    // from a copy or chmod -R.
    File::options().write(true).open(target.join(large)).unwrap().write_all(b"mine").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    for name in [large, CARD_FILE, MANIFEST_FILE, RECEIPT_FILE] {
        let path = target.join(name);
        fs::set_permissions(&path, path.metadata().unwrap().permissions()).unwrap();
    }
    // Hashing takes too long for a dry run, and happens before any work.
    OutputDir::check(&target, OVERWRITE).unwrap();
    let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains(large) && error.contains("was changed"), "{error}");
    assert_eq!(names(dir.path()), ["out"]);
}

fn allow(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_replaces_a_result_is_as_private() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mode = |name: &str| target.join(name).metadata().unwrap().mode() & 0o7777;
    finish(&target, OPTIONS).unwrap();
    allow(&target, 0o750);
    allow(&target.join(RECEIPT_FILE), 0o640);
    allow(&target.join(CARD_FILE), 0o600);
    allow(&target.join(MANIFEST_FILE), 0o600);
    let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
    assert_eq!(output.path().metadata().unwrap().mode() & 0o777, 0o700);
    output.write(RECEIPT_FILE, b"{}").unwrap();
    output.write(CARD_FILE, b"words").unwrap();
    output.write("sub/new.json", b"words").unwrap();
    output.commit().unwrap();
    let modes = ["", RECEIPT_FILE, CARD_FILE, MANIFEST_FILE, "sub/new.json"].map(mode);
    assert_eq!(modes, [0o750, 0o640, 0o600, 0o600, 0o600]);
}

#[test]
fn what_is_protected_stays() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    for name in [RECEIPT_FILE, CARD_FILE, "sub/new.json"] {
        output.write(name, b"{}").unwrap();
    }
    output.commit().unwrap();
    for (name, protected, allowed) in
        [("", 0o555, 0o755), ("sub", 0o555, 0o755), (CARD_FILE, 0o444, 0o644)]
    {
        allow(&target.join(name), protected);
        let error = OutputDir::check(&target, OVERWRITE).unwrap_err();
        assert!(
            error.kind() == Kind::Usage && error.to_string().contains("write-protected"),
            "{name}: {error}"
        );
        allow(&target.join(name), allowed);
    }
    finish(&target, OVERWRITE).unwrap();
}
