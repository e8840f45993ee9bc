//! Declares properties that a family fixes or has a config key for, and refuses those that it can't
//! express.

use serde_json::{Map, Value, json};

use crate::family::Flag;
use crate::layer::Linear;
use crate::{Error, Kind, Result};

pub(crate) fn declare_bias<'a>(
    raw: &mut Map<String, Value>,
    flag: &Flag,
    linears: impl Iterator<Item = &'a Linear>,
    what: &str,
) -> Result<()> {
    let present: Vec<bool> = linears.map(|l| l.bias.is_some()).collect();
    let present =
        uniform(&present).ok_or_else(|| cannot(&format!("{what} in some layers only")))?;
    declare_flag(
        raw,
        flag,
        present,
        &if present { what.to_owned() } else { format!("layers without {what}") },
    )
}

pub(crate) fn declare_flag(
    raw: &mut Map<String, Value>,
    flag: &Flag,
    value: bool,
    what: &str,
) -> Result<()> {
    match flag {
        Flag::Key(key) => {
            raw.insert(key.clone(), json!(value));
            Ok(())
        }
        Flag::Fixed(fixed) if *fixed == value => Ok(()),
        Flag::Fixed(_) => Err(cannot(what)),
    }
}

pub(crate) fn uniform<T: PartialEq + Clone>(values: &[T]) -> Option<T> {
    let first = values.first()?;
    values.iter().all(|v| v == first).then(|| first.clone())
}

pub(crate) fn cannot(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the target family cannot express {what}"))
        .remedy("choose another --target where inspect lists one")
}
