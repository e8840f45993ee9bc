use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (path, hidden) = (dir.path().join("file"), dir.path().join(".file.partial-moe-convert"));
    fs::write(&hidden, "what a killed run left behind").unwrap();
    fs::write(&path, "before").unwrap();
    let create = || StagedFile::create(&path, FoundFile::at(&path));
    let file = create().unwrap();
    let busy = create().unwrap_err();
    assert!(busy.to_string().contains("another run"), "{busy}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    file.commit(|file| file.write_all(b"after")).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "after");
    assert!(create().unwrap().commit(|_| Err(io::Error::other("no"))).is_err());
    drop(create().unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "after");
    assert!(!hidden.exists());
}

#[test]
fn files_that_belong_together_appear_together() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, nowhere] = ["first", "second", "nowhere/third"].map(|n| dir.path().join(n));
    fs::write(&first, "before").unwrap();
    let write = |last: &Path| {
        let files = [(first.as_path(), b"1".as_slice()), (&second, b"2"), (last, b"3")];
        write_files(files.map(|(path, content)| (path, FoundFile::at(path), content)))
    };
    assert_eq!(write(&nowhere).unwrap_err().kind(), Kind::Io);
    assert_eq!(fs::read_to_string(&first).unwrap(), "before");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::create_dir(dir.path().join("nowhere")).unwrap();
    write(&nowhere).unwrap();
    for (path, content) in [(&first, "1"), (&second, "2"), (&nowhere, "3")] {
        assert_eq!(fs::read_to_string(path).unwrap(), content);
    }
}

type Change = fn(&Path);

/// Ways in which a file appears at a path, or becomes another one, while a run works.
const CHANGES: [(&str, Change); 4] = [
    ("written in place", |path| fs::write(path, "words").unwrap()),
    ("removed and written", |path| {
        let _ = fs::remove_file(path);
        fs::write(path, "words").unwrap();
    }),
    ("renamed to it, as programs save that don't write in place", |path| {
        let other = path.with_file_name("thesis");
        fs::write(&other, "words").unwrap();
        fs::rename(other, path).unwrap();
    }),
    ("edited, with the time of before", |path| {
        let modified =
            path.metadata().and_then(|found| found.modified()).unwrap_or(std::time::UNIX_EPOCH);
        fs::write(path, "words").unwrap();
        File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
    }),
];

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    // Includes a file of the same size as the later one.
    for before in [None, Some(""), Some("early"), Some("an earlier file")] {
        for (how, change) in CHANGES {
            let _ = fs::remove_file(&path);
            before.iter().for_each(|text| fs::write(&path, text).unwrap());
            let file = StagedFile::create(&path, FoundFile::at(&path)).unwrap();
            // File system clocks tick every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(&path);
            let error = file.commit(|file| file.write_all(b"result")).unwrap_err().to_string();
            assert!(
                error.contains("file-2") && error.contains("in the way"),
                "{before:?} {how}: {error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), "words");
            assert_eq!(fs::read_to_string(dir.path().join("file-2")).unwrap(), "result");
            fs::remove_file(dir.path().join("file-2")).unwrap();
        }
    }
}

#[test]
fn a_run_writes_its_own_file_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let write = |found, text: &str| {
        StagedFile::create(&path, found)?.commit(|file| file.write_all(text.as_bytes()))
    };
    let first = write(FoundFile::default(), "one").unwrap();
    let second = write(first, "two").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, "mine").unwrap();
    assert!(write(second, "three").unwrap_err().to_string().contains("in the way"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_replacement_is_as_private_and_protected_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    const ANY: FileKind = FileKind { content: "anything", holds: |_| true, is_text: false };
    for mode in [0o600, 0o640, 0o444] {
        fs::write(&path, "before").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let found = check_file(&path, &ANY, true);
        if mode == 0o444 {
            let error = found.unwrap_err();
            assert!(
                error.kind() == Kind::Usage && error.to_string().contains("write-protected"),
                "{error}"
            );
            continue;
        }
        StagedFile::create(&path, found.unwrap())
            .unwrap()
            .commit(|file| file.write_all(b"after"))
            .unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, mode);
    }
}

#[test]
fn nothing_is_appended_to_a_file_with_two_names() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("notes.md"), dir.path().join("model.py"));
    open_to_append(&path).unwrap().write_all(b"one").unwrap();
    open_to_append(&path).unwrap().write_all(b"two").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "onetwo");
    fs::hard_link(&path, &other).unwrap();
    assert_eq!(open_to_append(&path).unwrap_err().kind(), Kind::Usage);
}

const LISTS: FileKind = FileKind {
    content: "a list",
    holds: |path| fs::read_to_string(path).is_ok_and(|text| text.starts_with('[')),
    is_text: false,
};

/// Asserts that `path` is refused for a list, and the error says `complaint` and a remedy.
#[track_caller]
fn refused(path: &Path, overwrite: bool, complaint: &str) {
    let error = check_file(path, &LISTS, overwrite).unwrap_err().to_string();
    assert!(error.contains(complaint) && error.contains("remedy"), "{}: {error}", path.display());
}

#[test]
fn a_file_replaces_its_own_kind_if_requested() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("list"), "[1]").unwrap();
    fs::write(path("empty"), "").unwrap();
    for overwrite in [false, true] {
        check_file(&path("new"), &LISTS, overwrite).unwrap();
        check_file(&path("empty"), &LISTS, overwrite).unwrap();
    }
    refused(&path("list"), false, "--overwrite");
    check_file(&path("list"), &LISTS, true).unwrap();
}

#[test]
fn a_file_replaces_nothing_of_another_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("list"), "[1]").unwrap();
    fs::write(path("thesis"), "words").unwrap();
    fs::create_dir(path("folder")).unwrap();
    std::os::unix::fs::symlink("list", path("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for overwrite in [false, true] {
        refused(&path("thesis"), overwrite, "something other than a list");
        refused(&path("folder"), overwrite, "a directory");
        refused(&path("link"), overwrite, "is a link");
        refused(&path("dangling"), overwrite, "is a link");
        refused(&path("socket"), overwrite, "not a regular file");
        refused(&path("nowhere/file"), overwrite, "doesn't exist");
        refused(&path(".."), overwrite, "no name");
        for name in ["new/", "new/.", "new//", "new/./", "list/", "folder/", "folder/."] {
            refused(&path(name), overwrite, "ends like that of a directory");
        }
    }
}

#[test]
fn no_file_is_put_into_a_model_or_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (folder, file, text) in [
        ("model", CONFIG_FILE, "{\"model_type\": \"mixtral\"}"),
        ("result", RECEIPT_FILE, "{}"),
        ("weights", SINGLE_FILE, ""),
        ("project", CONFIG_FILE, "{\"port\": 80}"),
    ] {
        fs::create_dir(path(folder)).unwrap();
        fs::write(path(folder).join(file), text).unwrap();
    }
    for overwrite in [false, true] {
        for name in ["model/new", "result/new", "weights/new"] {
            refused(&path(name), overwrite, "folder of a model or a result");
        }
        check_file(&path("project/new"), &LISTS, overwrite).unwrap();
    }
}

#[test]
fn text_alone_goes_to_a_device() {
    let null = Path::new("/dev/null");
    refused(null, true, "not a regular file");
    let found = check_file(null, &FileKind { is_text: true, ..LISTS }, false).unwrap();
    let staged = StagedFile::create(null, found).unwrap();
    let written = staged.commit(|file| file.write_all(b"[1]")).unwrap();
    assert!(written.is_stream());
}

#[test]
fn paths_that_can_not_be_written_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nowhere/file");
    assert_eq!(StagedFile::create(&missing, FoundFile::default()).unwrap_err().kind(), Kind::Io);
    assert_eq!(
        StagedFile::create(Path::new("/"), FoundFile::default()).unwrap_err().kind(),
        Kind::Usage
    );
}
