//! Python's string methods.

use super::args::{
    CallArgs, integer, integer_or, is_set, required, required_text, text, text_or, unless_none,
};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::value::{Items, Str, Value};
use super::{ENTRY_BYTES, Fail, Fallible, attributes, format, letters, splitting};

/// The methods that are implemented here.
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

/// Calls `own.method(args)`.
pub(super) fn call(
    run: &mut Interpreter,
    own: &Str,
    method: &str,
    args: CallArgs,
) -> Fallible<Value> {
    run.step(own.len())?;
    match method {
        "format" => format::format(run, own, &args),
        "strip" | "lstrip" | "rstrip" => strip(own, method, args),
        "split" | "rsplit" => split(run, own, method, args),
        "splitlines" => split_lines(run, own, args),
        "join" => join(run, own, args),
        "replace" => replace(run, own, args),
        "startswith" | "endswith" => has_affix(own, method, args),
        "find" | "rfind" | "index" | "rindex" | "count" => search(own, method, args),
        "removeprefix" | "removesuffix" => without_affix(own, method, args),
        "partition" | "rpartition" => partition(own, method, args),
        "zfill" | "center" | "ljust" | "rjust" => pad(run, own, method, args),
        "expandtabs" => expand_tabs(run, own, args),
        _ => {
            args.none(method)?;
            run.room(own.len().saturating_mul(3))?;
            Ok(plain(own, method))
        }
    }
}

/// Calls methods without arguments.
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

fn strip(own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
    let [chars] = args.bind(method, ["chars"])?;
    Ok(stripped(own, method, chars.as_ref())?.into())
}

fn split(run: &mut Interpreter, own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
    let [separator, limit] = args.bind(method, ["sep", "maxsplit"])?;
    let limit = integer_or(-1, limit, method)?;
    let from_end = method == "rsplit";
    let Some(separator) = unless_none(separator) else {
        let words = own.split(is_space).filter(|word| !word.is_empty()).count();
        run.handled(words * ENTRY_BYTES)?;
        return Ok(listed(splitting::words(own, limit, from_end)));
    };
    let separator = filled_separator(&separator, method)?;
    run.handled(own.matches(&*separator).count().saturating_mul(ENTRY_BYTES))?;
    Ok(listed(splitting::parts(own, &separator, limit, from_end)))
}

fn filled_separator(separator: &Value, method: &str) -> Fallible<Str> {
    let separator = text(separator, method)?;
    if separator.is_empty() {
        return Err(Fail::new("empty separator"));
    }
    Ok(separator)
}

fn split_lines(run: &mut Interpreter, own: &Str, args: CallArgs) -> Fallible<Value> {
    let [keep] = args.bind("splitlines", ["keepends"])?;
    run.handled(own.matches(splitting::BREAKS).count() * ENTRY_BYTES)?;
    Ok(listed(splitting::lines(own, is_set(keep))))
}

fn join(run: &mut Interpreter, own: &Str, args: CallArgs) -> Fallible<Value> {
    let [items] = args.bind("join", ["iterable"])?;
    let mut parts = Vec::new();
    for item in required(items, "join", "iterable")?.iterate()? {
        parts.push(text(&item, "join")?);
    }
    joined(run, own, &parts)
}

fn replace(run: &mut Interpreter, own: &Str, args: CallArgs) -> Fallible<Value> {
    let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
    let old = required_text(old, "replace", "old")?;
    let new = required_text(new, "replace", "new")?;
    let count = integer_or(-1, count, "replace")?;
    replaced(run, own, &old, &new, count)
}

/// `startswith` and `endswith`, with an affix or a tuple of affixes.
fn has_affix(own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
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

fn without_affix(own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
    let [affix] = args.bind(method, ["affix"])?;
    let affix = required_text(affix, method, "affix")?;
    let rest = if method == "removeprefix" {
        own.strip_prefix(&*affix)
    } else {
        own.strip_suffix(&*affix)
    };
    Ok(rest.unwrap_or(own).into())
}

fn partition(own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
    let [separator] = args.bind(method, ["sep"])?;
    let separator = filled_separator(&required(separator, method, "sep")?, method)?;
    let at_end = method == "rpartition";
    let found = if at_end { own.rsplit_once(&*separator) } else { own.split_once(&*separator) };
    let parts = match found {
        Some((before, after)) => [before, &separator, after],
        None if at_end => ["", "", own],
        None => [own, "", ""],
    };
    Ok(Value::Tuple(Items::new(parts.into_iter().map(Value::from).collect())))
}

fn pad(run: &mut Interpreter, own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
    let [width, fill] = args.bind(method, ["width", "fillchar"])?;
    let width = integer(&required(width, method, "width")?, method)?;
    let fill = text_or(" ", fill, method)?;
    padded(run, own, method, width, &fill)
}

fn expand_tabs(run: &mut Interpreter, own: &Str, args: CallArgs) -> Fallible<Value> {
    let [size] = args.bind("expandtabs", ["tabsize"])?;
    let size = integer_or(8, size, "expandtabs")?;
    expanded(run, own, size)
}

fn listed(parts: Vec<&str>) -> Value {
    parts.into_iter().map(Value::from).collect::<Vec<_>>().into()
}

/// Strips `chars`, or white space, from the ends that `method` names.
pub(super) fn stripped<'a>(own: &'a str, method: &str, chars: Option<&Value>) -> Fallible<&'a str> {
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(chars) => Some(text(chars, method)?),
    };
    let is_stripped =
        |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let own = if method == "rstrip" { own } else { own.trim_start_matches(is_stripped) };
    Ok(if method == "lstrip" { own } else { own.trim_end_matches(is_stripped) })
}

/// Joins `parts` with `separator`.
pub(super) fn joined(run: &mut Interpreter, separator: &str, parts: &[Str]) -> Fallible<Value> {
    let bytes = parts.iter().map(|part| part.len()).sum::<usize>()
        + separator.len().saturating_mul(parts.len());
    run.handled(bytes)?;
    let parts: Vec<&str> = parts.iter().map(|part| &**part).collect();
    Ok(parts.join(separator).into())
}

/// Replaces `old` by `new` in `own`, at most `count` times; without a limit if that is negative.
pub(super) fn replaced(
    run: &mut Interpreter,
    own: &str,
    old: &str,
    new: &str,
    count: i128,
) -> Fallible<Value> {
    let found = own.matches(old).count();
    run.room((own.len()).saturating_add(found.saturating_mul(new.len())))?;
    run.step(own.len() + found * new.len())?;
    Ok(match usize::try_from(count) {
        Ok(count) => own.replacen(old, new, count).into(),
        Err(_) => own.replace(old, new).into(),
    })
}

/// Returns `own[start:end]`.
fn part(own: &Str, start: Option<Value>, end: Option<Value>) -> Fallible<Str> {
    if start.is_none() && end.is_none() {
        return Ok(own.clone());
    }
    let bounds = [start.unwrap_or(Value::None), end.unwrap_or(Value::None), Value::None];
    text(&attributes::slice(&Value::Str(own.clone()), &bounds)?, "a part of a text")
}

fn search(own: &Str, method: &str, args: CallArgs) -> Fallible<Value> {
    let [wanted, start, end] = args.bind(method, ["sub", "start", "end"])?;
    let wanted = required_text(wanted, method, "sub")?;
    let offset = offset(own, start.as_ref(), method)?;
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

/// Returns the number of characters before a search that begins at `start`.
fn offset(own: &str, start: Option<&Value>, method: &str) -> Fallible<i128> {
    let Some(start) = start.filter(|start| !matches!(start, Value::None)) else { return Ok(0) };
    let start = integer(start, method)?;
    let length = own.chars().count() as i128;
    Ok(if start < 0 { (start + length).max(0) } else { start })
}

/// Pads `own` to `width` characters.
pub(super) fn padded(
    run: &mut Interpreter,
    own: &str,
    method: &str,
    width: i128,
    fill: &str,
) -> Fallible<Value> {
    if fill.chars().count() != 1 {
        return Err(Fail::new("the fill character must be exactly one character long"));
    }
    let length = own.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    run.room(missing.saturating_mul(fill.len()))?;
    run.step(missing)?;
    if method == "zfill" {
        return Ok(with_zeros(own, missing).into());
    }
    let left = match method {
        "ljust" => 0,
        // Python's own rounding of odd padding.
        "center" => missing / 2 + (missing & (length + missing) & 1),
        _ => missing,
    };
    Ok(format!("{}{own}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

/// Inserts `zeros` zeros after the sign of `own`.
fn with_zeros(own: &str, zeros: usize) -> String {
    let (sign, digits) = own.split_at(usize::from(own.starts_with(['+', '-'])));
    format!("{sign}{}{digits}", "0".repeat(zeros))
}

fn expanded(run: &mut Interpreter, own: &str, size: i128) -> Fallible<Value> {
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
