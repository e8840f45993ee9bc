//! What `--overwrite` replaces, and what it keeps.

use super::*;
use crate::staging::unmovable::{in_order, replace_by_removal};

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
        (RUN_FILE, &run_record("").replacen('{', "{\"notes\": \"mine\", ", 1)),
        (RUN_FILE, &run_record("").replace("\"h\"", "{\"notes\": \"mine\"}")),
        (RUN_FILE, &run_record("").replace("\"h\"", "\"mine\"")),
        (RUN_FILE, r#"{"source": "", "device": "Cpu", "unix_time": 0, "timings": []}"#),
        (LOG_FILE, "{\"step\": 1}\n"),
        (MANIFEST_FILE, &format!("{other_sums}{sums}")),
    ] {
        let before = fs::read(target.join(name)).ok();
        fs::write(target.join(name), text).unwrap();
        let error = OutputDir::create(&target, OVERWRITE).map(drop).expect_err(name);
        assert!(
            error.kind() == Kind::Usage && error.to_string().contains("remedy"),
            "{name}: {error}"
        );
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
}

#[test]
fn a_log_of_a_training_is_what_its_run_has_written() {
    const LOG: &str = "{\"step\": 1, \"loss\": 2}\n";
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let make = || finish_saying(&target, OVERWRITE, "{\"training\": {}}");
    make().unwrap();
    fs::write(target.join(RUN_FILE), run_record(LOG)).unwrap();
    for edited in [
        format!("{LOG}a note\n"),
        format!("{LOG}{{\"step\": 9, \"mine\": \"x\"}}\n"),
        LOG.replace("2}", "2, \"mine\": 1}"),
        LOG.replace('2', "1"),
    ] {
        fs::write(target.join(LOG_FILE), &edited).unwrap();
        let error = make().unwrap_err().to_string();
        assert!(error.contains(LOG_FILE), "{error}");
        assert_eq!(fs::read_to_string(target.join(LOG_FILE)).unwrap(), edited);
    }
    fs::write(target.join(LOG_FILE), LOG).unwrap();
    // The run record that says whose log it is was removed or changed.
    for run in [None, Some(run_record(LOG).replace("\"h\"", "\"mine\""))] {
        fs::remove_file(target.join(RUN_FILE)).unwrap();
        run.iter().for_each(|run| fs::write(target.join(RUN_FILE), run).unwrap());
        assert!(make().is_err());
        fs::write(target.join(RUN_FILE), run_record(LOG)).unwrap();
    }
    make().unwrap();
}

#[test]
fn overwrite_keeps_weights_that_somebody_has_put_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let weights = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "sub/vocab.zip",
        "x.bin",
    ];
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
        // Written in place, with its earlier time of modification.
        let modified = path.metadata().unwrap().modified().unwrap();
        fs::write(&path, "mine").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        let error = make().unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(name), "{name}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::write(&path, name).unwrap();
        // Replacing a rewritten file of the same content loses nothing.
        make().unwrap();
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

#[test]
fn what_is_touched_while_a_run_works_is_hashed_again() {
    type Change = fn(&Path);
    let changes: [(&str, bool, Change); 6] = [
        ("nothing", true, |_| ()),
        ("permissions of a file", true, |out| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(out.join(CARD_FILE), fs::Permissions::from_mode(0o640)).unwrap();
        }),
        ("a file written in place", false, |out| fs::write(out.join(CARD_FILE), "mine!").unwrap()),
        ("a file replaced", false, |out| {
            fs::remove_file(out.join(CARD_FILE)).unwrap();
            fs::write(out.join(CARD_FILE), "mine!").unwrap();
        }),
        ("another result in its place", false, |out| {
            finish_saying(&out.with_file_name("other"), OPTIONS, "{\"other\": 1}").unwrap();
            fs::rename(out, out.with_file_name("aside")).unwrap();
            fs::rename(out.with_file_name("other"), out).unwrap();
        }),
        ("another result in its place, perhaps of the same inode", false, |out| {
            fs::remove_dir_all(out).unwrap();
            finish_saying(&out.with_file_name("other"), OPTIONS, "{\"other\": 1}").unwrap();
            fs::rename(out.with_file_name("other"), out).unwrap();
        }),
    ];
    for (what, is_replaced, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        finish(&target, OPTIONS).unwrap();
        let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
        output.write(RECEIPT_FILE, b"{\"new\": 1}").unwrap();
        // File system clocks tick every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        change(&target);
        let before = fs::read_to_string(target.join(RECEIPT_FILE)).unwrap();
        let committed = output.commit();
        assert_eq!(committed.is_ok(), is_replaced, "{what}: {committed:?}");
        let kept = fs::read_to_string(target.join(RECEIPT_FILE)).unwrap();
        assert_eq!(kept == before, !is_replaced, "{what}");
        assert_eq!(dir.path().join("out-2").exists(), !is_replaced, "{what}");
    }
}

#[test]
fn a_result_that_comes_while_a_run_works_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (target, other) = (dir.path().join("out"), dir.path().join("other"));
    // At first nothing is there when the run begins; then there is an empty folder.
    for begins in [false, true] {
        finish_saying(&other, OPTIONS, "{\"other\": 1}").unwrap();
        if begins {
            fs::create_dir(&target).unwrap();
        }
        let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
        output.write(RECEIPT_FILE, b"{}").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let _ = fs::remove_dir(&target);
        fs::rename(&other, &target).unwrap();
        let error = output.commit().unwrap_err().to_string();
        assert!(error.contains("out-2") && error.contains("in the way"), "{error}");
        assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{\"other\": 1}");
        fs::remove_dir_all(&target).unwrap();
        fs::remove_dir_all(dir.path().join("out-2")).unwrap();
    }
}

#[test]
fn only_what_is_left_of_a_result_is_damage() {
    let tensors = |name: &str| {
        let header =
            format!("{{\"{name}\":{{\"dtype\":\"U8\",\"shape\":[40],\"data_offsets\":[0,40]}}}}");
        let header =
            format!("{header}{}", " ".repeat(header.len().next_multiple_of(8) - header.len()));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; 40]].concat()
    };
    let receipt = |tensors: u64, bytes: u64| {
        format!(
            "{{\n  \"format\": 1,\n  \"tool\": {{\n    \"name\": \"moe-convert\",\n    \"version\": \"0\"\n  }},\n  \"result\": {{\"tensors\": {tensors}, \
             \"bytes\": {bytes}}}\n}}\n"
        )
    };
    let (ours, longer) = (tensors("a"), [tensors("other"), vec![7; 10]].concat());
    let index = "{\"weight_map\": {\"a\": \"model.safetensors\", \"b\": \"model2.safetensors\"}}";
    let cut = |bytes: &[u8], by: usize| bytes[..bytes.len() - by].to_vec();
    let (single, of_other_bytes) = (receipt(1, 40).into_bytes(), receipt(1, 50).into_bytes());
    type Case<'a> = (&'a str, &'a [u8], Option<&'a str>, Vec<u8>, bool);
    let cases: [Case<'_>; 10] = [
        ("cut weights", &single, None, cut(&ours, 5), true),
        ("nothing", &single, None, vec![], true),
        ("as many tensors, of other bytes", &of_other_bytes, None, cut(&ours, 5), false),
        ("other weights, whole", &single, None, longer.clone(), false),
        ("cut weights of several files", &single, Some(index), cut(&ours, 5), true),
        ("cut weights of other names", &single, Some(index), cut(&tensors("c"), 5), false),
        ("cut weights of another file", &single, Some(index), cut(&tensors("b"), 5), false),
        ("other bytes", &single, None, b"words".to_vec(), false),
        ("a receipt that says nothing", b"{\"a\": 1}", None, cut(&ours, 5), false),
        ("a receipt that is cut, too", &single[..50], None, cut(&ours, 5), true),
    ];
    for (what, receipt, index, weights, is_damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut output = OutputDir::create(&target, OPTIONS).unwrap();
        output.write("model.safetensors", &ours).unwrap();
        index.iter().for_each(|index| output.write(crate::INDEX_FILE, index.as_bytes()).unwrap());
        output.write(RECEIPT_FILE, receipt).unwrap();
        output.write(CARD_FILE, b"words").unwrap();
        output.commit().unwrap();
        fs::write(target.join("model.safetensors"), weights).unwrap();
        let checked = OutputDir::check(&target, OVERWRITE);
        assert_eq!(checked.is_ok(), is_damage, "{what}: {checked:?}");
    }
    // Weights cut anywhere, down to the first byte, count as damage; the same bytes in another file
    // count as someone's.
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut output = OutputDir::create(&target, OPTIONS).unwrap();
    output.write("model.safetensors", &ours).unwrap();
    output.write("vocab.bin", &ours).unwrap();
    output.write(RECEIPT_FILE, &single).unwrap();
    output.write(CARD_FILE, b"words").unwrap();
    output.commit().unwrap();
    for bytes in 0..ours.len() {
        fs::write(target.join("model.safetensors"), &ours[..bytes]).unwrap();
        OutputDir::check(&target, OVERWRITE).unwrap_or_else(|e| panic!("{bytes}: {e}"));
    }
    for mine in ["mine", "mine\n", "I", "hello"] {
        fs::write(target.join("model.safetensors"), mine).unwrap();
        assert!(OutputDir::check(&target, OVERWRITE).is_err(), "{mine}");
    }
    fs::write(target.join("model.safetensors"), &ours).unwrap();
    fs::write(target.join("vocab.bin"), &ours[..4]).unwrap();
    assert!(OutputDir::check(&target, OVERWRITE).is_err());
    // A receipt that was cut, or is someone's own.
    let whole = receipt(1, 40);
    // Earlier builds wrote no format.
    let earlier = whole.replace("  \"format\": 1,\n", "");
    for (left, is_damage) in [
        (&whole[..10], true),
        (&whole[..60], true),
        (&earlier[..10], true),
        (&earlier[..60], true),
        ("{\"mine\": [1,", false),
        ("words", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        finish_saying(&target, OPTIONS, &whole).unwrap();
        fs::write(target.join(RECEIPT_FILE), left).unwrap();
        let checked = OutputDir::check(&target, OVERWRITE);
        assert_eq!(checked.is_ok(), is_damage, "{left}: {checked:?}");
    }
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
    for (name, protected, allowed) in
        [("", 0o555, 0o755), ("sub", 0o555, 0o755), (CARD_FILE, 0o444, 0o644)]
    {
        allow(name, protected);
        let error = OutputDir::check(&target, OVERWRITE).unwrap_err();
        assert!(
            error.kind() == Kind::Usage && error.to_string().contains("write-protected"),
            "{name}: {error}"
        );
        allow(name, allowed);
    }
    finish(&target, OVERWRITE).unwrap();
}

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

/// Stops after each step of the removal, as a kill may.
#[test]
fn what_is_left_of_a_replacement_by_removal_is_ended_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let steps =
        in_order(["model.safetensors", "sub/deep/vocab.json", CARD_FILE, RECEIPT_FILE].into_iter());
    assert_eq!(steps.len(), 9);
    for done in 0..=steps.len() + 1 {
        let target = made_with_folder(dir.path(), "out", "{\"old\": 1}");
        fs::rename(
            made_with_folder(dir.path(), "new", "{\"new\": 1}"),
            path(".out.complete-moe-convert"),
        )
        .unwrap();
        for removed in steps.iter().take(done) {
            let path = target.join(&removed.name);
            let result =
                if removed.is_dir { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            result.unwrap_or_else(|e| panic!("{removed:?} after {done} steps: {e}"));
        }
        if done > steps.len() {
            fs::remove_dir(&target).unwrap();
        }
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
    // While a run works on this, others are refused.
    let target = made_with_folder(dir.path(), "out", "{}");
    let complete = path(".out.complete-moe-convert");
    fs::rename(made_with_folder(dir.path(), "new", "{\"new\": 1}"), &complete).unwrap();
    let working = File::open(&complete).unwrap();
    lock(&target, &working).unwrap();
    let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
    drop(working);
    // If the waiting result is no longer complete, nothing is removed for it.
    for (name, text) in
        [("model.safetensors", "mine"), ("model.safetensors", ""), ("thesis.tex", "words")]
    {
        fs::write(complete.join(name), text).unwrap();
        let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
        assert!(error.contains("complete-moe-convert") && error.contains("remedy"), "{error}");
        assert_eq!((names(dir.path()).len(), receipt(&target).as_str()), (2, "{}"));
    }
}
