//! Python's string methods.

use super::calls::{CallArgs, integer, required, text};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::value::{Items, Text, Value};
use super::{ENTRY_BYTES, Fail, Outcome, attributes, format, letters};

/// Methods that are known here.
pub(super) const METHODS: [&str; 43] = [
    "upper",
    "lower",
    "capitalize",
    "title",
    "swapcase",
    "casefold",
    "strip",
    "lstrip",
    "rstrip",
    "split",
    "rsplit",
    "splitlines",
    "join",
    "replace",
    "startswith",
    "endswith",
    "find",
    "rfind",
    "index",
    "rindex",
    "count",
    "removeprefix",
    "removesuffix",
    "partition",
    "rpartition",
    "zfill",
    "center",
    "ljust",
    "rjust",
    "expandtabs",
    "format",
    "isdigit",
    "isdecimal",
    "isnumeric",
    "isalpha",
    "isalnum",
    "isspace",
    "isupper",
    "islower",
    "istitle",
    "isascii",
    "isprintable",
    "isidentifier",
];

/// What `own.method(args)` gives.
pub(super) fn call(
    run: &mut Interpreter,
    own: &Text,
    method: &str,
    args: CallArgs,
) -> Outcome<Value> {
    run.step(own.len())?;
    match method {
        "format" => format::format(run, own, &args),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(method, ["chars"])?;
            Ok(stripped(own, method, chars.as_ref())?.into())
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.bind(method, ["sep", "maxsplit"])?;
            let limit = limit.map_or(Ok(-1), |limit| integer(&limit, method))?;
            let parts = match separator.filter(|separator| !matches!(separator, Value::None)) {
                Some(separator) => {
                    let separator = text(&separator, method)?;
                    if separator.is_empty() {
                        return Err(Fail::new("empty separator"));
                    }
                    run.handled(own.matches(&*separator).count().saturating_mul(ENTRY_BYTES))?;
                    split(own, &separator, limit, method == "rsplit")
                }
                None => {
                    run.handled(
                        own.split(is_space).filter(|word| !word.is_empty()).count() * ENTRY_BYTES,
                    )?;
                    split_words(own, limit, method == "rsplit")
                }
            };
            Ok(listed(parts))
        }
        "splitlines" => {
            let [keep] = args.bind(method, ["keepends"])?;
            run.handled(own.matches(BREAKS).count() * ENTRY_BYTES)?;
            Ok(listed(lines(own, keep.is_some_and(|keep| keep.is_true()))))
        }
        "join" => {
            let [items] = args.bind(method, ["iterable"])?;
            let mut parts = Vec::new();
            for item in required(items, method, "iterable")?.iterate()? {
                parts.push(text(&item, "join")?);
            }
            joined(run, own, &parts)
        }
        "replace" => {
            let [old, new, count] = args.bind(method, ["old", "new", "count"])?;
            let old = text(&required(old, method, "old")?, method)?;
            let new = text(&required(new, method, "new")?, method)?;
            let count = count.map_or(Ok(-1), |count| integer(&count, method))?;
            replaced(run, own, &old, &new, count)
        }
        "startswith" | "endswith" => {
            let [affix, start, end] = args.bind(method, ["prefix", "start", "end"])?;
            let part = part(own, start, end)?;
            let affixes = match required(affix, method, "prefix")? {
                Value::Tuple(affixes) => affixes.to_vec(),
                affix => vec![affix],
            };
            let mut found = false;
            for affix in &affixes {
                let affix = text(affix, method)?;
                found |= if method == "startswith" {
                    part.starts_with(&*affix)
                } else {
                    part.ends_with(&*affix)
                };
            }
            Ok(Value::Bool(found))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(own, method, args),
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(method, ["affix"])?;
            let affix = text(&required(affix, method, "affix")?, method)?;
            let rest = if method == "removeprefix" {
                own.strip_prefix(&*affix)
            } else {
                own.strip_suffix(&*affix)
            };
            Ok(rest.unwrap_or(own).into())
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(method, ["sep"])?;
            let separator = text(&required(separator, method, "sep")?, method)?;
            if separator.is_empty() {
                return Err(Fail::new("empty separator"));
            }
            let at_end = method == "rpartition";
            let found =
                if at_end { own.rsplit_once(&*separator) } else { own.split_once(&*separator) };
            let parts = match found {
                Some((before, after)) => [before, &separator, after],
                None if at_end => ["", "", own],
                None => [own, "", ""],
            };
            Ok(Value::Tuple(Items::new(parts.into_iter().map(Value::from).collect())))
        }
        "zfill" | "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(method, ["width", "fillchar"])?;
            let width = integer(&required(width, method, "width")?, method)?;
            let fill = fill.map_or(Ok(Text::new(" ")), |fill| text(&fill, method))?;
            padded(run, own, method, width, &fill)
        }
        "expandtabs" => {
            let [size] = args.bind(method, ["tabsize"])?;
            let size = size.map_or(Ok(8), |size| integer(&size, method))?;
            expanded(run, own, size)
        }
        _ => {
            args.bind(method, []).map(|[]| ())?;
            run.room(own.len().saturating_mul(3))?;
            Ok(plain(own, method))
        }
    }
}

/// Methods without arguments.
fn plain(own: &str, method: &str) -> Value {
    match method {
        "upper" => own.to_uppercase().into(),
        "lower" => own.to_lowercase().into(),
        "casefold" => letters::casefolded(own).into(),
        "capitalize" => letters::capitalized(own).into(),
        "title" => letters::titled(own).into(),
        "swapcase" => letters::swapped(own).into(),
        _ => Value::Bool(letters::is(own, method)),
    }
}

fn listed(parts: Vec<&str>) -> Value {
    parts.into_iter().map(Value::from).collect::<Vec<_>>().into()
}

/// `own` without `chars`, or white space, at the ends that `method` names.
pub(super) fn stripped<'a>(own: &'a str, method: &str, chars: Option<&Value>) -> Outcome<&'a str> {
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(chars) => Some(text(chars, method)?),
    };
    let goes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let own = if method == "rstrip" { own } else { own.trim_start_matches(goes) };
    Ok(if method == "lstrip" { own } else { own.trim_end_matches(goes) })
}

fn split<'a>(own: &'a str, separator: &str, limit: i128, from_end: bool) -> Vec<&'a str> {
    let most = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
    if !from_end {
        return own.splitn(most, separator).collect();
    }
    let mut parts: Vec<&str> = own.rsplitn(most, separator).collect();
    parts.reverse();
    parts
}

fn split_words(own: &str, limit: i128, from_end: bool) -> Vec<&str> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest =
        if from_end { own.trim_end_matches(is_space) } else { own.trim_start_matches(is_space) };
    while !rest.is_empty() && parts.len() < most {
        if from_end {
            let begin = rest
                .char_indices()
                .rev()
                .find(|(_, c)| is_space(*c))
                .map_or(0, |(at, c)| at + c.len_utf8());
            parts.push(&rest[begin..]);
            rest = rest[..begin].trim_end_matches(is_space);
        } else {
            let end = rest.find(is_space).unwrap_or(rest.len());
            parts.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_space);
        }
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_end {
        parts.reverse();
    }
    parts
}

/// What Python takes for the end of a line.
pub(super) const BREAKS: [char; 10] =
    ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];

/// Python's `splitlines`.
pub(super) fn lines(own: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = own;
    while !rest.is_empty() {
        let end = rest.find(BREAKS).unwrap_or(rest.len());
        let width = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        lines.push(&rest[..if keep { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    lines
}

/// `parts` with `separator` between them.
pub(super) fn joined(run: &mut Interpreter, separator: &str, parts: &[Text]) -> Outcome<Value> {
    let bytes = parts.iter().map(|part| part.len()).sum::<usize>()
        + separator.len().saturating_mul(parts.len());
    run.handled(bytes)?;
    let parts: Vec<&str> = parts.iter().map(|part| &**part).collect();
    Ok(parts.join(separator).into())
}

/// `own` with `new` for `old`, `count` times; always, if that is negative.
pub(super) fn replaced(
    run: &mut Interpreter,
    own: &str,
    old: &str,
    new: &str,
    count: i128,
) -> Outcome<Value> {
    let found = own.matches(old).count();
    run.room((own.len()).saturating_add(found.saturating_mul(new.len())))?;
    run.step(own.len() + found * new.len())?;
    Ok(match usize::try_from(count) {
        Ok(count) => own.replacen(old, new, count).into(),
        Err(_) => own.replace(old, new).into(),
    })
}

/// `own[start:end]`.
fn part(own: &Text, start: Option<Value>, end: Option<Value>) -> Outcome<Text> {
    if start.is_none() && end.is_none() {
        return Ok(own.clone());
    }
    let bounds = [start.unwrap_or(Value::None), end.unwrap_or(Value::None), Value::None];
    text(&attributes::slice(&Value::Str(own.clone()), &bounds)?, "a part of a text")
}

fn search(own: &Text, method: &str, args: CallArgs) -> Outcome<Value> {
    let [wanted, start, end] = args.bind(method, ["sub", "start", "end"])?;
    let wanted = text(&required(wanted, method, "sub")?, method)?;
    let offset = match &start {
        Some(start) if !matches!(start, Value::None) => {
            let start = integer(start, method)?;
            let length = own.chars().count() as i128;
            if start < 0 { (start + length).max(0) } else { start }
        }
        _ => 0,
    };
    let part = part(own, start, end)?;
    if method == "count" {
        return Ok(Value::Int(part.matches(&*wanted).count() as i128));
    }
    let found = if method.starts_with('r') { part.rfind(&*wanted) } else { part.find(&*wanted) };
    match found {
        Some(at) => Ok(Value::Int(offset + part[..at].chars().count() as i128)),
        None if method.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Fail::new("substring not found")),
    }
}

/// `own` in a field of `width`.
pub(super) fn padded(
    run: &mut Interpreter,
    own: &str,
    method: &str,
    width: i128,
    fill: &str,
) -> Outcome<Value> {
    if fill.chars().count() != 1 {
        return Err(Fail::new("the fill character must be exactly one character long"));
    }
    let length = own.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    run.room(missing.saturating_mul(fill.len()))?;
    run.step(missing)?;
    let width = length + missing;
    let (left, right) = match method {
        "ljust" => (0, missing),
        // Python's own rounding.
        "center" => {
            let left = missing / 2 + (missing & width & 1);
            (left, missing - left)
        }
        _ => (missing, 0),
    };
    if method == "zfill" {
        let (sign, digits) = own.split_at(usize::from(own.starts_with(['+', '-'])));
        return Ok(format!("{sign}{}{digits}", "0".repeat(left)).into());
    }
    Ok(format!("{}{own}{}", fill.repeat(left), fill.repeat(right)).into())
}

fn expanded(run: &mut Interpreter, own: &str, size: i128) -> Outcome<Value> {
    let size = usize::try_from(size).unwrap_or(0);
    run.room(own.matches('\t').count().saturating_mul(size))?;
    let mut result = String::new();
    let mut column = 0;
    for c in own.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                result.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                result.push(c);
                column = 0;
            }
            _ => {
                result.push(c);
                column += 1;
            }
        }
    }
    Ok(result.into())
}
