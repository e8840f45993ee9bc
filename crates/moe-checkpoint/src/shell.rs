//! Words of commands that a user may copy into a shell.

/// `text` as one word of a POSIX shell, in quotes if the shell would read it otherwise.
pub fn shell_word(text: &str) -> String {
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "./_-+=:@%,".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_a_shell() {
        let words = ["out/moe-8x", "my models/it's", ""].map(shell_word);
        assert_eq!(words, ["out/moe-8x", r"'my models/it'\''s'", "''"]);
    }
}
