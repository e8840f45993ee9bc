//! The HTML of the page. All text is escaped here, and all markup but that of pictures comes from
//! here.

use std::fmt::{self, Display, Write as _};

use moe_checkpoint::Seal;

use super::escaped::Escaped;
use super::svg::Svg;

/// The beginning of every page.
pub(super) const BEGINNING: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
     <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
     <meta name=\"color-scheme\" content=\"light dark\">\n";

/// A table. Columns are aligned right except the first, unless the table holds words.
pub(super) struct Table {
    /// Caption above the table.
    pub caption: &'static str,
    /// Names of the columns.
    pub header: Vec<String>,
    /// Cells by row.
    pub rows: Vec<Vec<String>>,
    /// Whether cells hold words rather than numbers.
    pub words: bool,
}

impl Table {
    /// A table of numbers.
    pub fn numbers(
        caption: &'static str,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Self {
        let header = header.iter().map(|h| (*h).to_owned()).collect();
        Self { caption, header, rows: rows.into_iter().collect(), words: false }
    }

    /// A table of words.
    pub fn words(
        caption: &'static str,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Self {
        Self { words: true, ..Self::numbers(caption, header, rows) }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.words { " class=\"words\"" } else { "" };
        // Scrollable boxes must be reachable by keyboard.
        let caption = Escaped(self.caption);
        write!(
            f,
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table{class}>"
        )?;
        write!(f, "<caption>{caption}</caption><thead><tr>")?;
        self.header
            .iter()
            .try_for_each(|name| write!(f, "<th scope=\"col\">{}</th>", Escaped(name)))?;
        f.write_str("</tr></thead><tbody>\n")?;
        for row in &self.rows {
            f.write_str("<tr>")?;
            for (index, cell) in row.iter().enumerate() {
                match index {
                    0 => write!(f, "<th scope=\"row\">{}</th>", Escaped(cell))?,
                    _ => write!(f, "<td>{}</td>", Escaped(cell))?,
                }
            }
            f.write_str("</tr>\n")?;
        }
        f.write_str("</tbody></table></div>\n")
    }
}

/// A section of the page.
pub(super) struct Section {
    id: &'static str,
    title: &'static str,
    body: String,
}

impl Section {
    pub fn new(id: &'static str, title: &'static str) -> Self {
        Self { id, title, body: String::new() }
    }

    /// The section's anchor on the page.
    pub fn id(&self) -> &'static str {
        self.id
    }

    fn push(mut self, markup: fmt::Arguments<'_>) -> Self {
        let _ = self.body.write_fmt(markup);
        self
    }

    /// Adds a paragraph; text between backticks becomes code.
    pub fn text(self, text: &str) -> Self {
        self.push(format_args!("<p>{}</p>\n", with_code(text)))
    }

    /// Adds a highlighted paragraph.
    pub fn warning(self, text: &str) -> Self {
        self.push(format_args!(
            "<p class=\"warning\"><strong>Note:</strong> {}</p>\n",
            with_code(text)
        ))
    }

    /// Adds a highlighted paragraph for each of `texts`, which end without a full stop.
    pub fn warnings(self, texts: &[String]) -> Self {
        texts.iter().fold(self, |section, text| section.warning(&format!("{text}.")))
    }

    /// Adds the main figures: name, value, and a value to compare it with.
    pub fn tiles(mut self, tiles: &[[String; 3]]) -> Self {
        self.body += "<dl class=\"tiles\">\n";
        for [name, value, beside] in tiles {
            let (name, value, beside) = (Escaped(name), Escaped(value), Escaped(beside));
            self = self.push(format_args!(
                "<div><dt>{name}</dt><dd>{value}<small>{beside}</small></dd></div>\n"
            ));
        }
        self.body += "</dl>\n";
        self
    }

    pub fn table(self, table: &Table) -> Self {
        self.push(format_args!("{table}"))
    }

    /// Adds a table that is opened on demand.
    pub fn folded(self, summary: &str, table: &Table) -> Self {
        self.push(format_args!(
            "<details><summary>{}</summary>\n{table}</details>\n",
            Escaped(summary)
        ))
    }

    /// Adds a legend of colors: CSS class and label.
    pub fn legend(mut self, entries: &[(&str, &str)]) -> Self {
        self.body += "<ul class=\"legend\">\n";
        for (class, words) in entries {
            self = self.push(format_args!(
                "<li><i class=\"swatch {class}\"></i>{}</li>\n",
                Escaped(words)
            ));
        }
        self.body += "</ul>\n";
        self
    }

    /// Adds pictures side by side.
    pub fn charts(mut self, charts: impl IntoIterator<Item = Svg>) -> Self {
        self.body += "<div class=\"charts\">\n";
        for chart in charts {
            let title = Escaped(chart.title());
            self = self
                .push(format_args!("<figure><figcaption>{title}</figcaption>{chart}</figure>\n"));
        }
        self.body += "</div>\n";
        self
    }

    /// Adds a picture that is wider than a phone.
    pub fn wide(self, chart: &Svg) -> Self {
        let label = Escaped(chart.title());
        self.push(format_args!(
            "<div class=\"scroll wide\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">{chart}</div>\n"
        ))
    }

    /// Adds preformatted text.
    pub fn verbatim(self, text: &str) -> Self {
        self.push(format_args!("<pre tabindex=\"0\">{}</pre>\n", Escaped(text)))
    }
}

fn with_code(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // An unpaired backtick stays a backtick.
    if parts.len().is_multiple_of(2) {
        return Escaped(text).to_string();
    }
    let part = |(index, part): (usize, &&str)| match index % 2 {
        0 => Escaped(part).to_string(),
        _ => format!("<code>{}</code>", Escaped(part)),
    };
    parts.iter().enumerate().map(part).collect()
}

/// The whole page, which ends in the hash of its text.
pub(super) fn page(title: &str, sections: &[Section]) -> String {
    let title = Escaped(title);
    let mut page = format!(
        "{BEGINNING}<title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n\
         <header><h1>{title}</h1></header>\n<nav aria-label=\"Sections\"><ol>\n",
        include_str!("style.css")
    );
    for Section { id, title, .. } in sections {
        let _ = writeln!(page, "<li><a href=\"#{id}\">{title}</a></li>");
    }
    page += "</ol></nav>\n<main>\n";
    for Section { id, title, body } in sections {
        let _ = writeln!(
            page,
            "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{body}</section>"
        );
    }
    Seal::XML.close(&(page + "</main>\n</body>\n</html>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            Escaped("<a href='x'>&\"\u{1}").to_string(),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}"
        );
        assert_eq!(with_code("`<b>` and `"), "`&lt;b&gt;` and `");
        assert_eq!(with_code("give `--<b>`"), "give <code>--&lt;b&gt;</code>");
        let table =
            Table::words("c", &["<h>"], [vec!["<1>".to_owned(), "<2>".to_owned()]]).to_string();
        assert!(!["<h>", "<1>", "<2>"].iter().any(|text| table.contains(text)));
    }
}
