//! Formats numbers. An absent value or NaN is an en dash, never 0.

/// The greatest size of a value: a page multiplies and scales them, which takes greater ones to
/// infinity.
pub(super) const GREATEST: f64 = 1e300;

/// The text for an absent value.
pub(super) const ABSENT: &str = "–";

fn shown(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.filter(|v| v.abs() <= GREATEST).map_or_else(|| ABSENT.to_owned(), format)
}

/// A share as a percentage.
pub(super) fn percent(share: Option<f64>) -> String {
    shown(share, |share| format!("{:.1}\u{a0}%", 100.0 * share))
}

/// With this number of decimals.
pub(super) fn decimal(value: Option<f64>, decimals: usize) -> String {
    shown(value, |value| format!("{value:.decimals$}"))
}

/// With its sign and four decimals.
pub(super) fn signed(value: Option<f64>) -> String {
    shown(value, |value| format!("{value:+.4}").replace('-', "−"))
}

/// With about three significant digits.
pub(super) fn significant(value: Option<f64>) -> String {
    shown(value, |value| match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size => format!("{value:.*}", (2 - size.log10().floor() as i32).max(0) as usize),
    })
}

/// With thin spaces between groups of three digits.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Ascending numbers as ranges: `0–3, 7`.
pub(super) fn runs(ascending: &[usize]) -> String {
    let runs = ascending.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [a] => a.to_string(),
        [a, b] => format!("{a}, {b}"),
        [a, .., b] => format!("{a}–{b}"),
        [] => String::new(),
    });
    let text = runs.collect::<Vec<_>>().join(", ");
    if text.is_empty() { ABSENT.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_a_dash() {
        assert_eq!(
            [percent(None), decimal(Some(f64::NAN), 2), signed(Some(f64::INFINITY))],
            [ABSENT; 3]
        );
        assert_eq!([significant(None), runs(&[])], [ABSENT; 2]);
    }

    #[test]
    fn numbers() {
        assert_eq!(
            [percent(Some(0.1234)), signed(Some(-0.5)), signed(Some(0.5))],
            ["12.3\u{a0}%", "−0.5000", "+0.5000"]
        );
        assert_eq!(
            [0.0, 1234.5, 12.345, 0.012345, 1e-7].map(|x| significant(Some(x))),
            ["0", "1234", "12.3", "0.0123", "1.00e-7"]
        );
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), "0–2, 5, 7, 8");
    }
}
