//! UTF-16 code units in JSON strings: a character may be a pair of two, each written as an escape.

/// Returns the code unit of the escape `\uXXXX` that `text` begins with.
pub(super) fn unit(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok()
}

/// Returns whether `unit` is the first half of a pair.
pub(super) fn is_high(unit: u32) -> bool {
    (0xd800..0xdc00).contains(&unit)
}

/// Returns whether `unit` is the second half of a pair.
pub(super) fn is_low(unit: u32) -> bool {
    (0xdc00..0xe000).contains(&unit)
}
