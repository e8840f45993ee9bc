//! Tests that what comes or changes while a run works is kept.

use super::*;

type Change = fn(&Path);

/// Changes to a result while a run works: how each is called, whether the result is replaced all the
/// same, and what is done.
const CHANGES: [(&str, bool, Change); 6] = [
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

#[test]
fn what_is_touched_while_a_run_works_is_hashed_again() {
    for (what, is_replaced, change) in CHANGES {
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
