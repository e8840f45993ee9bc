//! Typed access to `config.json` with the defaults that stock loaders assume.

use std::path::Path;

use moe_checkpoint::json;
use serde_json::{Map, Value};

use crate::family::{Family, Flag};
use crate::{Error, Kind, Result};

/// A config of a known family. Missing keys have the defaults that loaders assume.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The content of `config.json`.
    pub raw: &'a Map<String, Value>,
    /// The family of the config.
    pub family: &'a Family,
    /// Path of the file, for messages.
    pub file: &'a Path,
}

impl<'a> Config<'a> {
    /// Returns the value of `key` in the config, or the family's default; None if there is neither.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).or_else(|| self.family.defaults.get(key))
    }

    /// Returns the error that `key` followed by `what`, such as "is null", which names the file.
    pub fn error(&self, key: &str, what: &str) -> Error {
        Error::new(Kind::Malformed, format!("config key {key:?} {what}"))
            .file(self.file)
            .remedy("get the config.json that belongs to these weights")
    }

    fn required(&self, key: &str) -> Result<&'a Value> {
        self.get(key).ok_or_else(|| self.error(key, "is missing"))
    }

    /// Returns the count under `key`.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if it is missing or not a count.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.optional_usize(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// Returns the count under `key`; None if it is missing or null.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if it is anything else.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        // Loaders hold dimensions in 32 bits with a sign; then a sum of two times a third fits,
        // too.
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                match value.as_u64().filter(|n| *n <= i32::MAX as u64) {
                    Some(n) => Ok(Some(n as usize)),
                    None => Err(self
                        .error(key, &format!("is {}, not a sensible count", json::shown(value)))),
                }
            }
        }
    }

    /// Returns the count under `key`, which is at least 1.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if it is missing, zero or not a count.
    pub fn positive(&self, key: &str) -> Result<usize> {
        match self.usize(key)? {
            0 => Err(self.error(key, "is 0")),
            n => Ok(n),
        }
    }

    /// Returns the boolean under `key`.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if it is missing or not a boolean.
    pub fn bool(&self, key: &str) -> Result<bool> {
        let value = self.required(key)?;
        // In Python, null counts as false. transformers 5 refuses it for most keys, which `verify`
        // reports; earlier versions read it.
        if value.is_null() && self.family.strict.is_switch(key) {
            return Ok(false);
        }
        value.as_bool().ok_or_else(|| {
            self.error(key, &format!("is {}, not true or false", json::shown(value)))
        })
    }

    /// Returns the finite number under `key`; None if it is missing or null.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if it is anything else.
    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => Err(self.error(key, &format!("is {}, not a number", json::shown(value)))),
            },
        }
    }

    /// Returns the value of a family's `flag` for this model.
    ///
    /// # Errors
    /// As for [`Config::bool`].
    pub fn flag(&self, flag: &Flag) -> Result<bool> {
        match flag {
            Flag::Fixed(value) => Ok(*value),
            Flag::Key(key) => self.bool(key),
        }
    }
}
