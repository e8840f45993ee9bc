//! Escapes text from elsewhere for Markdown pages: model cards, and summaries of recipes. It can't
//! become markup, HTML or a link.

use std::fmt::{self, Display, Write as _};

use moe_checkpoint::is_obeyed;

/// Text within a line, a table cell or a heading.
pub struct MarkdownText<'a>(pub &'a str);

impl Display for MarkdownText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line that begins with one of these may be a heading, an item of a list or a quotation.
        if self.0.starts_with(['#', '-', '+', '>', '=']) {
            f.write_char('\\')?;
        }
        let mut before = ' ';
        for (at, c) in self.0.char_indices() {
            write_escaped(f, before, c, &self.0[at + c.len_utf8()..])?;
            before = c;
        }
        Ok(())
    }
}

/// Writes `c`, which stands between `before` and `after`.
fn write_escaped(f: &mut fmt::Formatter<'_>, before: char, c: char, after: &str) -> fmt::Result {
    match c {
        '\n' | '\r' | '\t' => f.write_char(' '),
        '<' => f.write_str("&lt;"),
        '&' => f.write_str("&amp;"),
        '\\' | '`' | '*' | '[' | ']' | '|' | '~' | '$' => write!(f, "\\{c}"),
        // Names of models and options have many underscores, and within a word they aren't markup.
        '_' if !(before.is_alphanumeric() && after.starts_with(char::is_alphanumeric)) => {
            f.write_str("\\_")
        }
        // GitHub makes links of bare addresses.
        ':' if after.starts_with("//") => f.write_str("\\:"),
        '.' if before.eq_ignore_ascii_case(&'w') => f.write_str("\\."),
        '@' => f.write_str("\\@"),
        c if is_obeyed(c) => f.write_char('\u{fffd}'),
        c => f.write_char(c),
    }
}

/// A name or a line of code. In a table, text with a `|` needs [`MarkdownText`].
pub struct MarkdownCode<'a>(pub &'a str);

impl Display for MarkdownCode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.0.chars().map(in_a_line).collect();
        let fence = "`".repeat(longest_run(&text) + 1);
        // A backtick at an end would become part of the fence, and empty code isn't code.
        let space = if text.trim().is_empty() || text.starts_with('`') || text.ends_with('`') {
            " "
        } else {
            ""
        };
        write!(f, "{fence}{space}{text}{space}{fence}")
    }
}

/// Several lines as a fenced block.
pub(crate) struct MarkdownBlock<'a> {
    /// Language of the block, such as `json`.
    pub language: &'static str,
    pub text: &'a str,
}

impl Display for MarkdownBlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.text.trim_end().chars().map(|c| if c == '\n' { c } else { in_a_line(c) });
        let text: String = lines.collect();
        let fence = "`".repeat(3.max(longest_run(&text) + 1));
        write!(f, "{fence}{}\n{text}\n{fence}\n", self.language)
    }
}

fn in_a_line(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' => ' ',
        c if is_obeyed(c) => '\u{fffd}',
        c => c,
    }
}

/// The length of the longest run of backticks.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        for (text, expected) in [
            ("qwen3_moe of a-b.c (1 × d), 90 %", "qwen3_moe of a-b.c (1 × d), 90 %"),
            ("a|b\nc", "a\\|b c"),
            ("<img src=x onerror=y>", "&lt;img src=x onerror=y>"),
            ("![x](https://e.vil)", "!\\[x\\](https\\://e.vil)"),
            (
                "[click](//e.vil) `rm` **b** _i_ ~~s~~ $x$ &lt;",
                "\\[click\\](//e.vil) \\`rm\\` \\*\\*b\\*\\* \\_i\\_ \\~\\~s\\~\\~ \\$x\\$ &amp;lt;",
            ),
            ("www.e.vil you@e.vil", "www\\.e.vil you\\@e.vil"),
            ("# heading", "\\# heading"),
            ("a\u{1b}[2J\u{202e}", "a\u{fffd}\\[2J\u{fffd}"),
        ] {
            assert_eq!(MarkdownText(text).to_string(), expected);
        }
    }

    #[test]
    fn code_ends_where_it_should() {
        assert_eq!(MarkdownCode("a`b").to_string(), "``a`b``");
        assert_eq!(MarkdownCode("`<b>`\n").to_string(), "`` `<b>` ``".replace("` ``", "`  ``"));
        assert_eq!(MarkdownCode("model").to_string(), "`model`");
        assert_eq!(MarkdownCode("").to_string(), "`  `");
        let block = MarkdownBlock { language: "text", text: "a\n```\nb\u{1b}\n" };
        assert_eq!(block.to_string(), "````text\na\n```\nb\u{fffd}\n````\n");
    }
}
