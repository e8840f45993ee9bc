//! Small text files that show whether they were changed: they end in the SHA-256 of all text before
//! it.
//!
//! Manifests don't list files that differ from run to run, or are outside a result. The seal shows
//! that such a file is this program's, and that a later run can replace it without losing anyone's
//! edits.

use crate::manifest::sha256_bytes;

/// The place of a hash at the end of files of a format.
#[derive(Debug, Clone, Copy)]
pub struct Seal {
    /// The end of the text, before which the hash is put.
    closing: &'static str,
    before: &'static str,
    after: &'static str,
}

impl Seal {
    /// The last key of an indented JSON object that has other keys.
    pub const JSON: Self =
        Self { closing: "\n}\n", before: ",\n  \"sha256\": \"", after: "\"\n}\n" };
    /// A comment in XML.
    pub const XML: Self =
        Self { closing: "", before: "<!-- written by moe-convert, sha256 ", after: " -->\n" };
    /// A comment in roff, the language of man pages.
    pub const ROFF: Self = Self { closing: "", before: ".\\\" sha256 ", after: "\n" };

    /// Returns `text` with its hash.
    pub fn close(&self, text: &str) -> String {
        let open = text.strip_suffix(self.closing).unwrap_or(text).to_owned() + self.before;
        let hash = sha256_bytes(open.as_bytes());
        open + &hash + self.after
    }

    /// Whether [`Self::close`] returned `text`, unchanged.
    pub fn is_intact(&self, text: &str) -> bool {
        const HASH: usize = 64;
        let Some(closed) = text.strip_suffix(self.after) else { return false };
        let Some((open, hash)) =
            closed.len().checked_sub(HASH).and_then(|at| closed.split_at_checked(at))
        else {
            return false;
        };
        open.ends_with(self.before) && sha256_bytes(open.as_bytes()) == hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of each kind that is sealed.
    const TEXTS: [(Seal, &str); 3] = [
        (Seal::JSON, "{\n  \"a\": 1,\n  \"b\": \"ä\"\n}\n"),
        (Seal::XML, "<a>ä</a>\n"),
        (Seal::ROFF, ".TH \"a\"\nä\n"),
    ];

    #[test]
    fn a_changed_character_breaks_the_seal() {
        for (seal, text) in TEXTS {
            let closed = seal.close(text);
            assert!(
                seal.is_intact(&closed) && !seal.is_intact(text) && !seal.is_intact(""),
                "{closed}"
            );
            for (at, character) in closed.char_indices() {
                let (before, after) = closed.split_at(at);
                let rest = &after[character.len_utf8()..];
                for edited in [
                    format!("{before}{rest}"),
                    format!("{before} {after}"),
                    format!("{before}~{rest}"),
                ] {
                    assert!(edited == closed || !seal.is_intact(&edited), "{edited}");
                }
            }
            assert!(!seal.is_intact(&(closed + "more\n")));
        }
    }

    #[test]
    fn the_seal_of_an_object_is_a_member_of_it() {
        let closed: serde_json::Value =
            serde_json::from_str(&Seal::JSON.close("{\n  \"a\": 1\n}\n")).unwrap();
        assert!(
            closed["a"] == 1 && closed["sha256"].as_str().is_some_and(|hash| hash.len() == 64),
            "{closed}"
        );
    }
}
