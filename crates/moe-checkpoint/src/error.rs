//! The one error type of the libraries: what went wrong, where, and what the user can do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::shown::shown;

/// The result of everything that reads, plans or writes checkpoints.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The sort of problem. Callers map it to exit codes, and tests match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// The operating system refused (permissions, full disk, a file that vanished).
    Io,
    /// A file does not follow its format.
    Malformed,
    /// Something required doesn't exist.
    Missing,
    /// Files contradict each other, such as a shape and the config.
    Mismatch,
    /// Valid, but not something this program can do.
    Unsupported,
    /// The options can't work with any data.
    Usage,
    /// A value is not finite, or a computation failed.
    Numeric,
    /// Stopped because something else failed, whose error says why.
    Stopped,
    /// The result is complete but worse than a quality gate allows.
    Gate,
}

/// An error in three parts: what went wrong, where (file and tensor), and the remedy.
#[derive(Debug)]
pub struct Error(Box<ErrorParts>);

#[derive(Debug)]
struct ErrorParts {
    kind: Kind,
    excerpt: Option<String>,
    what: String,
    usage: Option<String>,
    file: Option<PathBuf>,
    tensor: Option<String>,
    remedy: Option<String>,
    options: Vec<String>,
    is_idle: bool,
    unknown: Option<[String; 2]>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Creates an error of `kind` that says `what` went wrong.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(ErrorParts {
            kind,
            excerpt: None,
            what: what.into(),
            usage: None,
            file: None,
            tensor: None,
            remedy: None,
            options: Vec::new(),
            is_idle: false,
            unknown: None,
            source: None,
        }))
    }

    /// Creates an error for `source`, which the system returned while doing `what` to `file`.
    pub fn io(what: impl Into<String>, file: impl AsRef<Path>, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("free space on that disk, or write elsewhere")
            }
            io::ErrorKind::FileTooLarge => Some(
                "raise the limit of a file's size (ulimit -f); for weights, a lower --max-shard-size does, too",
            ),
            io::ErrorKind::PermissionDenied => Some("check the permissions of this path"),
            io::ErrorKind::ReadOnlyFilesystem => Some("choose an output on a writable disk"),
            io::ErrorKind::NotFound => Some("check the path"),
            io::ErrorKind::IsADirectory => Some("give a file: this is a directory"),
            io::ErrorKind::NotADirectory => {
                Some("give another path: something in this one is a file, not a directory")
            }
            io::ErrorKind::AlreadyExists => {
                Some("give another path, or move away what has this name")
            }
            io::ErrorKind::InvalidData => Some("this is not UTF-8 text: convert it first"),
            io::ErrorKind::UnexpectedEof => Some("download or copy the file again"),
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => {
                Some("allow more processes and threads (ulimit -u) and address space (ulimit -v)")
            }
            _ => Some("check that the disk and the file are sound, then try again"),
        };
        let mut error = Self::new(Kind::Io, what).file(file).source(source);
        error.0.remedy = remedy.map(str::to_owned);
        error
    }

    /// Adds lines of the file that show the place of the problem, which come before the description.
    /// They keep their line breaks, so each must begin with something that no message begins with,
    /// such as its number.
    #[must_use]
    pub fn excerpt(mut self, lines: impl Into<String>) -> Self {
        self.0.excerpt = Some(lines.into());
        self
    }

    /// Adds the line that shows how the command is used, for readers of text.
    #[must_use]
    pub fn usage(mut self, line: impl Into<String>) -> Self {
        self.0.usage = Some(line.into());
        self
    }

    /// Adds the file that the error is about, unless there is one already.
    #[must_use]
    pub fn file(mut self, file: impl AsRef<Path>) -> Self {
        self.0.file.get_or_insert_with(|| file.as_ref().to_owned());
        self
    }

    /// Adds the tensor that the error is about, unless there is one already.
    #[must_use]
    pub fn tensor(mut self, tensor: impl Into<String>) -> Self {
        self.0.tensor.get_or_insert_with(|| tensor.into());
        self
    }

    /// Adds what the user can do about it, unless there is a remedy already.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy.get_or_insert_with(|| remedy.into());
        self
    }

    /// Replaces the remedy, if more is known than the operating system's error says.
    #[must_use]
    pub fn better_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Adds the underlying error.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Names the `options`, such as "--seed", that the error is about, its subject first.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.0.options = options.iter().map(|option| (*option).to_owned()).collect();
        self
    }

    /// The options that the error is about, its subject first; empty if unknown.
    pub fn named_options(&self) -> &[String] {
        &self.0.options
    }

    /// Marks the error as being only about `options`, such as "--seed", that have no effect in
    /// combination with the other options.
    #[must_use]
    pub fn idle(mut self, options: &[&str]) -> Self {
        self.0.is_idle = true;
        self.options(options)
    }

    /// The options without which there would be no error; empty if unknown.
    pub fn idle_options(&self) -> &[String] {
        if self.0.is_idle { &self.0.options } else { &[] }
    }

    /// Marks the error as being only that `command` has no `option`, such as "batch-size".
    #[must_use]
    pub fn unknown_option(mut self, command: &str, option: &str) -> Self {
        self.0.unknown = Some([command.to_owned(), option.to_owned()]);
        self
    }

    /// The command and the option that it doesn't have; None if the error is another.
    pub fn named_unknown(&self) -> Option<(&str, &str)> {
        self.0.unknown.as_ref().map(|[command, option]| (command.as_str(), option.as_str()))
    }

    /// The description of the problem, without its cause.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// The description of the problem, with its cause.
    pub fn said(&self) -> String {
        self.0.whole()
    }

    /// The remedy for the user; None if unknown.
    pub fn named_remedy(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// The tensor that the error is about; None if it isn't about one.
    pub fn named_tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The file that the error is about; None if it isn't about one.
    pub fn named_file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// Puts the `place` of the error before the description of the problem.
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.0.what = format!("{place}: {}", self.0.what);
        self
    }

    /// Adds the `part` that the error is about after the description of the problem.
    #[must_use]
    pub fn about(mut self, part: &str) -> Self {
        self.0.what += &format!(" in {part}");
        self
    }

    /// Rewrites the description of the problem and the remedy with `words`.
    #[must_use]
    pub fn reworded(mut self, words: impl Fn(&str) -> String) -> Self {
        self.0.what = words(&self.0.what);
        self.0.remedy = self.0.remedy.as_deref().map(words);
        self
    }

    /// The description of the problem and the remedy, on one line.
    pub fn briefly(&self) -> String {
        let remedy = self.0.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
        format!("{}{remedy}", self.0.what)
    }

    /// The sort of problem.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
}

impl ErrorParts {
    /// The description of the problem, with its excerpt and its cause.
    fn whole(&self) -> String {
        match &self.excerpt {
            Some(lines) => format!("{lines}\n{}", self.sentence()),
            None => self.sentence(),
        }
    }

    /// The description of the problem, with its cause.
    fn sentence(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {source}", self.what),
            None => self.what.clone(),
        }
    }
}

/// An object of the three parts; unknown ones are null.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let parts = &self.0;
        let mut object = serializer.serialize_struct("Error", 5)?;
        object.serialize_field("kind", &parts.kind)?;
        object.serialize_field("what", &parts.whole())?;
        object.serialize_field("tensor", &parts.tensor)?;
        object.serialize_field("file", &parts.file.as_deref().map(Path::to_string_lossy))?;
        object.serialize_field("remedy", &parts.remedy)?;
        object.end()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &self.0;
        if let Some(lines) = &parts.excerpt {
            writeln!(f, "{}", quoted(lines, MAX_WHAT, "\n\t"))?;
        }
        // A line break of a file would begin a line that looks like the program's.
        write!(f, "{}", quoted(&parts.sentence(), MAX_WHAT, "\t"))?;
        if let Some(usage) = &parts.usage {
            write!(f, "\n  usage:  {}", quoted(usage, MAX_WHAT, ""))?;
        }
        if let Some(tensor) = &parts.tensor {
            write!(f, "\n  tensor: {}", quoted(tensor, MAX_NAME, ""))?;
        }
        if let Some(file) = &parts.file {
            write!(f, "\n  file:   {}", quoted(&file.to_string_lossy(), MAX_NAME, ""))?;
        }
        if let Some(remedy) = &parts.remedy {
            write!(f, "\n  remedy: {}", quoted(remedy, MAX_WHAT, "\t"))?;
        }
        Ok(())
    }
}

/// Maximum number of characters shown of a sentence, and of a name or path (which the system limits
/// to 4096 bytes).
const MAX_WHAT: usize = 2000;
const MAX_NAME: usize = 4096;

/// `text` as messages quote it: very long text is cut.
fn quoted(text: &str, limit: usize, layout: &str) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => shown(&text[..end], layout).into_owned() + "…",
        None => shown(text, layout).into_owned(),
    }
}

// `source()` stays empty, since the message already includes the underlying error: reporters that
// walk the chain would print it twice.
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_files_is_escaped_in_messages() {
        let error = Error::new(Kind::Malformed, "key a\nremedy: rm\x1b[2J")
            .excerpt("1 | a\x1b\n  | ^")
            .tensor("a\r\nremedy: rm")
            .remedy("remove a\nremedy: rm")
            .source("x".repeat(1 << 20));
        let message = error.to_string();
        let start = "1 | a\\u{1b}\n  | ^\nkey a\\nremedy: rm\\u{1b}[2J: xxx";
        assert!(message.starts_with(start) && message.contains("x…"), "{message}");
        let end = "\n  tensor: a\\r\\nremedy: rm\n  remedy: remove a\\nremedy: rm";
        assert!(message.ends_with(end) && message.len() < 2 * MAX_WHAT, "{message}");
    }
}
