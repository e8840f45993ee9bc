//! Escapes text for HTML and SVG.

use std::fmt::{self, Display, Write as _};

use moe_checkpoint::is_obeyed;

/// Text from any source, escaped when displayed.
pub(crate) struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            // Most control characters are invalid in HTML and XML, and direction marks would
            // reverse the text around them.
            '\n' | '\t' => f.write_char(c),
            c if is_obeyed(c) => f.write_char('\u{fffd}'),
            c => f.write_char(c),
        })
    }
}
