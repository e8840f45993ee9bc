//! Letters, their cases, and digits, as defined by Python's strings.

use unicode_general_category::{GeneralCategory, get_general_category};

use super::lexer::is_space;
use super::repr::is_printable;

/// Returns `text.method()` for the methods of Python's strings that begin with `is`.
pub(super) fn is(text: &str, method: &str) -> bool {
    match method {
        "isdecimal" => all_are(text, |c| decimal(c).is_some()),
        "isdigit" => all_are(text, is_digit),
        "isnumeric" => all_are(text, is_numeric),
        "isalpha" => all_are(text, is_letter),
        "isalnum" => all_are(text, |c| is_letter(c) || is_numeric(c)),
        "isspace" => all_are(text, is_space),
        "isupper" => is_cased(text, true),
        "islower" => is_cased(text, false),
        "istitle" => is_titled(text),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(|c| c == ' ' || is_printable(c) && !c.is_control()),
        _ => is_identifier(text),
    }
}

fn all_are(text: &str, holds: fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(holds)
}

/// Returns the value of a decimal digit of any script; None for other characters.
pub(super) fn decimal(c: char) -> Option<u32> {
    if c.is_ascii() || !is_decimal(c) {
        return c.to_digit(10);
    }
    // Unicode has decimal digits in runs from 0 to 9; two runs may be adjacent.
    let before = (1..).take_while(|by| char::from_u32(u32::from(c) - by).is_some_and(is_decimal));
    Some(before.count() as u32 % 10)
}

fn is_decimal(c: char) -> bool {
    get_general_category(c) == GeneralCategory::DecimalNumber
}

/// Replaces digits of other scripts in `text` by ASCII's, as Python's `int` and `float` do.
pub(super) fn with_ascii_digits(text: &str) -> String {
    text.chars()
        .map(|c| decimal(c).and_then(|digit| char::from_digit(digit, 10)).unwrap_or(c))
        .collect()
}

/// Returns whether `c` is a decimal digit, or one in a circle, above or below the line (Unicode 14,
/// as in Python 3.11).
fn is_digit(c: char) -> bool {
    decimal(c).is_some()
        || matches!(c, '\u{b2}'..='\u{b3}' | '\u{b9}' | '\u{1369}'..='\u{1371}' | '\u{19da}' | '\u{2070}' | '\u{2074}'..='\u{2079}' | '\u{2080}'..='\u{2089}' | '\u{2460}'..='\u{2468}' | '\u{2474}'..='\u{247c}' | '\u{2488}'..='\u{2490}' | '\u{24ea}' | '\u{24f5}'..='\u{24fd}' | '\u{24ff}' | '\u{2776}'..='\u{277e}' | '\u{2780}'..='\u{2788}' | '\u{278a}'..='\u{2792}' | '\u{10a40}'..='\u{10a43}' | '\u{10e60}'..='\u{10e68}' | '\u{11052}'..='\u{1105a}' | '\u{1f100}'..='\u{1f10a}')
}

/// Ideographs with a numeric value (Unicode 14, as in Python 3.11).
const NUMBERS: &str = "㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍\
    弎弐拾捌柒漆玖百肆萬貮貳贰阡陆陌陸零參拾兩零六陸什𠀁𠁤𠃢𠄡𠤪𠦃𠦌𠦜𠫪𠫽𠬙𢎐𢦘𣬛𦉭\
    廾";

fn is_numeric(c: char) -> bool {
    c.is_numeric() || NUMBERS.contains(c)
}

fn is_letter(c: char) -> bool {
    use GeneralCategory::{
        LowercaseLetter, ModifierLetter, OtherLetter, TitlecaseLetter, UppercaseLetter,
    };
    let letters = [LowercaseLetter, ModifierLetter, OtherLetter, TitlecaseLetter, UppercaseLetter];
    letters.contains(&get_general_category(c))
}

/// Returns whether `c` is one letter that combines an uppercase and a lowercase one.
fn is_title_case(c: char) -> bool {
    get_general_category(c) == GeneralCategory::TitlecaseLetter
}

fn has_case(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title_case(c)
}

/// Returns whether `text` has letters with a case, and all of them have this one.
pub(super) fn is_cased(text: &str, upper: bool) -> bool {
    text.chars().any(has_case)
        && text
            .chars()
            .filter(|c| has_case(*c))
            .all(|c| if upper { c.is_uppercase() } else { c.is_lowercase() })
}

fn is_titled(text: &str) -> bool {
    let (mut inside, mut found) = (false, false);
    for c in text.chars() {
        if has_case(c) && c.is_lowercase() != inside {
            return false;
        }
        inside = has_case(c);
        found |= inside;
    }
    found
}

fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    let starts = chars.next().is_some_and(|c| c == '_' || c.is_alphabetic());
    starts && chars.all(|c| c == '_' || c.is_alphanumeric())
}

/// Returns each character of `text` with its lowercase form. That of a sigma depends on its
/// neighbors.
fn with_small(text: &str) -> impl Iterator<Item = (char, String)> {
    let small = text.to_lowercase();
    let mut at = 0;
    text.chars().map(move |c| {
        let end = at
            + small[at..].chars().take(c.to_lowercase().count()).map(char::len_utf8).sum::<usize>();
        let own = small[at..end].to_owned();
        at = end;
        (c, own)
    })
}

/// Returns `text` with its first letter in uppercase and the others in lowercase.
pub(super) fn capitalized(text: &str) -> String {
    let letter =
        |(at, (c, small)): (usize, (char, String))| if at == 0 { title_case(c) } else { small };
    with_small(text).enumerate().map(letter).collect()
}

/// Returns `text` with the first letter of each word in uppercase and the others in lowercase.
pub(super) fn titled(text: &str) -> String {
    let mut inside = false;
    let mut result = String::with_capacity(text.len());
    for (c, small) in with_small(text) {
        result.push_str(&if inside { small } else { title_case(c) });
        inside = has_case(c);
    }
    result
}

/// Swaps uppercase and lowercase letters.
pub(super) fn swapped(text: &str) -> String {
    let mut swapped = String::new();
    for (c, small) in with_small(text) {
        if c.is_uppercase() {
            swapped.push_str(&small);
        } else if c.is_lowercase() {
            swapped.extend(c.to_uppercase());
        } else {
            swapped.push(c);
        }
    }
    swapped
}

/// Returns `text` in the form that is compared without regard to case.
pub(super) fn casefolded(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Dotless i is a letter of its own, though its uppercase form is that of i.
            'ı' => result.push(c),
            'ẞ' => result.push_str("ss"),
            // Cherokee's uppercase letters came first, so these are its folded form.
            'Ꭰ'..='Ᏽ' => result.push(c),
            'ᏸ'..='ᏽ' | 'ꭰ'..='ꮿ' => result.extend(c.to_uppercase()),
            _ => c.to_uppercase().for_each(|large| result.extend(large.to_lowercase())),
        }
    }
    result
}

fn iota_below(c: char) -> char {
    if c == 'Ι' { '\u{345}' } else { c }
}

/// Returns the first of `large` unchanged, and the others in lowercase.
fn first_large(mut large: impl Iterator<Item = char>) -> String {
    let first: String = large.next().into_iter().collect();
    first + &large.flat_map(char::to_lowercase).collect::<String>()
}

/// Returns `c` as the first letter of a word: of a letter that combines two, only the first is
/// uppercase.
fn title_case(c: char) -> String {
    match c {
        'Ǆ'..='ǆ' => "ǅ".into(),
        'Ǉ'..='ǉ' => "ǈ".into(),
        'Ǌ'..='ǌ' => "ǋ".into(),
        'Ǳ'..='ǳ' => "ǲ".into(),
        'ß' | 'ﬀ'..='ﬆ' | 'և' | 'ﬓ'..='ﬗ' => first_large(c.to_uppercase()),
        // Georgian has uppercase letters only for whole words.
        'ა'..='ჺ' | 'ჽ'..='ჿ' => c.into(),
        // Greek letters with iota below have title case forms, eight after the lowercase ones.
        'ᾀ'..='ᾇ' | 'ᾐ'..='ᾗ' | 'ᾠ'..='ᾧ' => {
            char::from_u32(u32::from(c) + 8).unwrap_or(c).into()
        }
        'ᾳ' | 'ῃ' | 'ῳ' => char::from_u32(u32::from(c) + 9).unwrap_or(c).into(),
        'ᾲ' | 'ᾴ' | 'ᾷ' | 'ῂ' | 'ῄ' | 'ῇ' | 'ῲ' | 'ῴ' | 'ῷ' => {
            c.to_uppercase().map(iota_below).collect()
        }
        _ if is_title_case(c) => c.into(),
        _ => c.to_uppercase().collect(),
    }
}
