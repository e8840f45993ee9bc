use super::*;

fn folder(dir: &Path) -> SavedFolder {
    SavedFolder::new(dir.to_owned(), &["log"])
}

#[test]
fn finished_steps_come_back_to_the_run_that_took_them() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    let saved = |key: &str, resume| folder(&dir).open(key.to_owned(), resume);
    let first = saved("a", false).unwrap();
    assert!(!dir.exists() && !folder(&dir).is_used().unwrap());
    first.put("one", &[1, 2, 3]).unwrap();
    // Within a run, no step is taken from the folder.
    assert_eq!(first.get("one").unwrap(), None);
    let resumed = saved("a", true).unwrap();
    assert_eq!(resumed.get("one").unwrap(), Some(vec![1, 2, 3]));
    assert_eq!(resumed.get("two").unwrap(), None);
    assert_eq!(saved("b", true).err().unwrap().kind(), Kind::Mismatch);
    // Starting over removes it.
    saved("b", false).unwrap();
    assert!(!dir.exists());
    resumed.put("two", &[]).unwrap();
    assert_eq!(saved("a", true).unwrap().get("two").unwrap(), Some(vec![]));
    folder(&dir).remove().unwrap();
    assert!(!dir.exists());
    folder(&dir).remove().unwrap();
}

#[test]
fn a_folder_with_only_a_mark_is_not_in_the_way() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    folder(&dir).open("a".to_owned(), false).unwrap().begin().unwrap();
    assert!(!folder(&dir).is_used().unwrap());
    let resumed = folder(&dir).open("b".to_owned(), true).unwrap();
    assert!(!dir.exists() && !resumed.has_steps());
    resumed.put("one", &[1]).unwrap();
    assert!(resumed.has_steps() && folder(&dir).is_used().unwrap());
}

#[test]
fn nothing_is_saved_through_a_replacement_of_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let [dir, aside, elsewhere] =
        ["saved", "aside", "elsewhere"].map(|name| parent.path().join(name));
    fs::create_dir(&elsewhere).unwrap();
    let saved = folder(&dir).open("a".to_owned(), false).unwrap();
    saved.put("one", &[1]).unwrap();
    fs::rename(&dir, &aside).unwrap();
    let refused = || {
        assert_eq!(saved.put("two", &[2]).unwrap_err().kind(), Kind::Mismatch);
        let counts = [&elsewhere, &dir].map(|dir| fs::read_dir(dir).unwrap().count());
        assert_eq!(counts, [0, 0]);
    };
    std::os::unix::fs::symlink(&elsewhere, &dir).unwrap();
    refused();
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    refused();
    fs::remove_dir(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();
    saved.put("two", &[2]).unwrap();
}

#[test]
fn steps_of_another_run_or_name_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = |name: &str| parent.path().join(name);
    for key in ["a", "b"] {
        let saved = folder(&dir(key)).open(key.to_owned(), false).unwrap();
        saved.put("one", key.as_bytes()).unwrap();
        saved.put("two", b"two").unwrap();
    }
    let resumed = || folder(&dir("a")).open("a".to_owned(), true).unwrap();
    let refused = |name: &str| {
        let error = resumed().get(name).unwrap_err();
        assert!(error.kind() == Kind::Malformed && error.to_string().contains(name), "{error}");
    };
    let intact = fs::read(dir("a/one")).unwrap();
    // A file of another run, one of another step of this run, and one that was never saved.
    fs::copy(dir("b/one"), dir("a/one")).unwrap();
    refused("one");
    fs::copy(dir("a/two"), dir("a/one")).unwrap();
    refused("one");
    fs::write(dir("a/one"), &intact[..intact.len() - 1]).unwrap();
    refused("one");
    fs::write(dir("a/one"), &intact).unwrap();
    assert_eq!(resumed().get("one").unwrap(), Some(b"a".to_vec()));
}

/// Without a mark the run of what was saved is unknown: it is neither resumed nor removed.
#[test]
fn steps_without_a_mark_are_kept_and_not_resumed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    folder(&dir).open("a".to_owned(), false).unwrap().put("one", b"a").unwrap();
    let wrong = ["", "a", "moe-convert training 3", "moe-convert training 2\na\n"];
    for mark in wrong.map(Some).into_iter().chain([None]) {
        fs::remove_file(dir.join("of")).unwrap();
        mark.iter().for_each(|mark| fs::write(dir.join("of"), mark).unwrap());
        for resume in [true, false] {
            let error = folder(&dir).open("a".to_owned(), resume).unwrap_err();
            assert_eq!(error.kind(), Kind::Malformed, "{mark:?}: {error}");
            assert!(error.to_string().contains("saved/of"), "{mark:?}: {error}");
            assert!(dir.join("one").exists());
        }
        fs::write(dir.join("of"), "").unwrap();
    }
}

#[test]
fn differences_from_another_run_are_named() {
    let key = |steps: u64, text: &str, extra: &str| {
        format!("hash\n{{\"--steps\": {steps}, \"words.txt\": \"{}\"{extra}}}", text.repeat(64))
    };
    let said = |given: &str| differing(&key(10, "a", ""), given).unwrap_or_default();
    assert_eq!(said(&key(10, "a", "")), "");
    assert_eq!(said(&key(20, "a", "")), "--steps was 10, and is 20");
    assert_eq!(said(&key(10, "b", ", \"more.txt\": 1")), "more.txt is new; words.txt has changed");
    assert_eq!(said("hash"), "");
}

/// Options of another build may have other names, so that they can't be given.
#[test]
fn another_build_is_named_and_not_its_options() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    let key = |build: &str, option: &str| {
        format!("{build}{option}\n{{\"--{option}\": 1, \"{BUILD_INPUT}\": \"{build}\"}}")
    };
    let saved = folder(&dir).open(key("a", "from"), false).unwrap();
    saved.put("one", &[1]).unwrap();
    let refused = |key: String| folder(&dir).open(key, true).unwrap_err().to_string();
    let other = refused(key("b", "original"));
    assert!(
        other.contains("of another build") && other.contains("the build that began it"),
        "{other}"
    );
    assert!(!other.contains("--from"), "{other}");
    assert!(refused(key("a", "original")).contains("--from is missing; --original is new"));
}

/// A saved run in a folder beside a thesis.
struct Beside {
    parent: tempfile::TempDir,
    dir: PathBuf,
    thesis: PathBuf,
}

impl Beside {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let [dir, thesis] = ["saved", "thesis.tex"].map(|name| parent.path().join(name));
        fs::write(&thesis, "words").unwrap();
        Self { parent, dir, thesis }
    }

    fn save(&self) {
        let saved = folder(&self.dir).open("a".to_owned(), false).unwrap();
        saved.put("one", &[1]).unwrap();
        fs::write(self.dir.join("log"), "{}").unwrap();
        fs::write(self.dir.join(".log.partial-moe-convert"), "half").unwrap();
    }

    /// Asserts that the folder is refused, and kept, because of `what` in it.
    #[track_caller]
    fn refused(&self, what: &str) {
        for resume in [true, false] {
            let error = folder(&self.dir).open("a".to_owned(), resume).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.to_string().contains(what), "{error}");
        }
        assert!(folder(&self.dir).remove().is_err() && self.dir.symlink_metadata().is_ok());
        assert!(what.is_empty() || self.dir.join(what).symlink_metadata().is_ok());
        assert_eq!(fs::read_to_string(&self.thesis).unwrap(), "words");
    }
}

#[test]
fn files_of_others_are_never_removed() {
    let beside = Beside::new();
    beside.save();
    fs::copy(&beside.thesis, beside.dir.join("thesis.tex")).unwrap();
    beside.refused("thesis.tex");
    fs::remove_file(beside.dir.join("thesis.tex")).unwrap();
    fs::create_dir(beside.dir.join("folder")).unwrap();
    beside.refused("folder");
}

/// Also if they have names of our files.
#[test]
fn links_of_others_are_never_removed() {
    let beside = Beside::new();
    for name in ["log", "one", "of", ".one.partial-moe-convert"] {
        beside.save();
        let link = beside.dir.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&beside.thesis, &link).unwrap();
        beside.refused(name);
        fs::remove_file(&link).unwrap();
        fs::write(beside.dir.join("of"), "moe-convert training 3\na\n").unwrap();
        folder(&beside.dir).remove().unwrap();
    }
}

#[test]
fn what_is_in_the_place_of_the_folder_is_never_removed() {
    let beside = Beside::new();
    fs::write(&beside.dir, "words").unwrap();
    beside.refused("");
    fs::remove_file(&beside.dir).unwrap();
    std::os::unix::fs::symlink(beside.parent.path(), &beside.dir).unwrap();
    beside.refused("");
    fs::remove_file(&beside.dir).unwrap();
    // An empty folder is nobody's.
    fs::create_dir(&beside.dir).unwrap();
    assert!(!folder(&beside.dir).is_used().unwrap());
    beside.save();
}
