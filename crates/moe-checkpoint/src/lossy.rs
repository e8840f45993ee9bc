//! Paths in JSON, which is text: parts of a name that aren't UTF-8 are replaced. serde refuses such
//! a path, and a receipt would lose all other options as well.

use std::path::PathBuf;

use serde::{Serialize as _, Serializer};

/// A path, or a container of paths.
pub trait Paths {
    /// Writes the paths as strings.
    ///
    /// # Errors
    /// If `serializer` fails.
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

impl Paths for PathBuf {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_string_lossy().serialize(serializer)
    }
}

impl Paths for Option<PathBuf> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
    }
}

impl Paths for Vec<PathBuf> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|path| path.to_string_lossy()))
    }
}

/// For `#[serde(serialize_with = …)]` on fields that are paths.
///
/// # Errors
/// If `serializer` fails.
pub fn lossy_paths<P: Paths, S: Serializer>(paths: &P, serializer: S) -> Result<S::Ok, S::Error> {
    paths.write(serializer)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    struct Named {
        #[serde(serialize_with = "lossy_paths")]
        one: PathBuf,
        #[serde(serialize_with = "lossy_paths")]
        perhaps: Option<PathBuf>,
        #[serde(serialize_with = "lossy_paths")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn a_name_that_is_not_utf_8_is_text_in_json() {
        let odd = PathBuf::from(OsStr::from_bytes(b"a\xff"));
        let named = Named { one: odd.clone(), perhaps: None, many: vec!["b".into(), odd] };
        let text = serde_json::to_string(&named).unwrap();
        assert_eq!(text, "{\"one\":\"a\u{fffd}\",\"perhaps\":null,\"many\":[\"b\",\"a\u{fffd}\"]}");
    }
}
