//! Small text files that tell whether anybody has changed them: at their end stands the SHA-256 of
//! all text before it.
//!
//! No manifest lists what differs from run to run, or what lies outside of a result. By its seal
//! such a file is known for this program's, and nobody's edits in it are lost when a later run
//! replaces it.

use crate::manifest::sha256_bytes;

/// How a format holds a hash at its end.
#[derive(Debug, Clone, Copy)]
pub struct Seal {
    /// What the hash is put in front of.
    closing: &'static str,
    before: &'static str,
    after: &'static str,
}

impl Seal {
    /// The last key of an indented JSON object that has others.
    pub const JSON: Self =
        Self { closing: "\n}\n", before: ",\n  \"sha256\": \"", after: "\"\n}\n" };
    /// A comment of XML.
    pub const XML: Self =
        Self { closing: "", before: "<!-- written by moe-convert, sha256 ", after: " -->\n" };
    /// A comment of roff, the language of man pages.
    pub const ROFF: Self = Self { closing: "", before: ".\\\" sha256 ", after: "\n" };

    /// `text` with its hash.
    pub fn close(&self, text: &str) -> String {
        let open = text.strip_suffix(self.closing).unwrap_or(text).to_owned() + self.before;
        let hash = sha256_bytes(open.as_bytes());
        open + &hash + self.after
    }

    /// Whether `text` is what [`Self::close`] gave, and nothing in it was changed.
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

    #[test]
    fn a_changed_character_breaks_the_seal() {
        let texts = [
            (Seal::JSON, "{\n  \"a\": 1,\n  \"b\": \"ä\"\n}\n"),
            (Seal::XML, "<a>ä</a>\n"),
            (Seal::ROFF, ".TH \"a\"\nä\n"),
        ];
        for (seal, text) in texts {
            let closed = seal.close(text);
            assert!(
                seal.is_intact(&closed) && !seal.is_intact(text) && !seal.is_intact(""),
                "{closed}"
            );
            for (at, _) in closed.char_indices() {
                let (before, after) = closed.split_at(at);
                let mut rest = after.chars();
                rest.next();
                let rest = rest.as_str();
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
        let closed: serde_json::Value =
            serde_json::from_str(&Seal::JSON.close("{\n  \"a\": 1\n}\n")).unwrap();
        assert!(
            closed["a"] == 1 && closed["sha256"].as_str().is_some_and(|hash| hash.len() == 64),
            "{closed}"
        );
    }
}
