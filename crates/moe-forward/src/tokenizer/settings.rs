//! Settings in the files next to `tokenizer.json`, combined as transformers 5's `from_pretrained`
//! does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result, json};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// The file that defines how text becomes tokens.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The file of a tokenizer's settings: its class, its special tokens, its chat template.
pub(crate) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP_FILE: &str = "special_tokens_map.json";
const ADDED_TOKENS_FILE: &str = "added_tokens.json";

/// The files that hold only settings; each of them is optional.
pub(super) const SETTINGS_FILES: [&str; 3] =
    [TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE];

/// `SPECIAL_TOKENS_ATTRIBUTES` of transformers. New ids are given in this order.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The key that marks an object in `tokenizer_config.json` as an added token, and its value.
const TYPE: &str = "__type";
const ADDED: &str = "AddedToken";

/// A special token as a file names it: its text, or its text with matching options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SpecialToken {
    Text(String),
    Added(AddedToken),
}

impl SpecialToken {
    pub fn text(&self) -> &str {
        match self {
            SpecialToken::Text(text) => text,
            SpecialToken::Added(token) => &token.content,
        }
    }
}

/// Reads `tokenizer_config.json`; empty if there is none.
pub(crate) fn read_config(model_dir: &Path) -> Result<Map<String, Value>> {
    Ok(read_object(&model_dir.join(TOKENIZER_CONFIG_FILE))?.unwrap_or_default())
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    // A dangling link is an error, not a missing file.
    if path.symlink_metadata().is_err() { Ok(None) } else { json::read_python(path).map(Some) }
}

/// Everything that decides which tokens are added to those of `tokenizer.json`.
#[derive(Debug, Default)]
pub(super) struct TokenizerSettings {
    /// Tokens with a role (`bos_token`, …), in transformers' order. Roles without a token are left
    /// out.
    pub named: Vec<(String, SpecialToken)>,
    /// Additional special tokens.
    pub extra: Vec<SpecialToken>,
    /// Tokens that the files list, by the id that they list. New ones get another id all the same.
    pub listed: BTreeMap<i64, AddedToken>,
    /// Whether special tokens that occur in a text are split like any other text.
    pub split_special_tokens: bool,
    /// The other keys of `tokenizer_config.json`.
    pub config: Map<String, Value>,
}

/// Defaults that don't come from [`SETTINGS_FILES`].
pub(super) struct Defaults<'a> {
    /// Roles with the class's token, or None for a role without one. A file may override them.
    pub named: &'a [(&'a str, Option<&'a str>)],
    /// The token that `tokenizer.json` pads with.
    pub padding: Option<String>,
    /// The added tokens of `tokenizer.json`, by the ids in the file; the library may give them
    /// others.
    pub added: BTreeMap<i64, AddedToken>,
}

/// Added tokens that files list.
#[derive(Default)]
struct ListedTokens {
    by_id: BTreeMap<i64, AddedToken>,
    by_text: HashMap<String, AddedToken>,
}

impl ListedTokens {
    /// Enters all tokens by their texts, too.
    fn name_all(&mut self) {
        let tokens = self.by_id.values();
        self.by_text.extend(tokens.map(|token| (token.content.clone(), token.clone())));
    }
}

impl TokenizerSettings {
    /// Reads the files of `model_dir`, whose `tokenizer_config.json` is `config`.
    ///
    /// # Errors
    /// [`Kind::Malformed`] for files that transformers refuses, too.
    pub fn read(
        model_dir: &Path,
        mut config: Map<String, Value>,
        defaults: Defaults<'_>,
    ) -> Result<Self> {
        let reader = SettingsReader { path: model_dir.join(TOKENIZER_CONFIG_FILE) };
        // If there is a tokenizer.json, its post-processor alone decides which tokens begin and end
        // a text.
        config.shift_remove("add_bos_token");
        config.shift_remove("add_eos_token");
        rename_additional(&mut config, |extra| extra.is_none_or(is_falsy));
        let mut specific = reader.take_model_specific(&mut config)?;
        let mut listed = ListedTokens::default();
        let mut later = Vec::new();
        if let Some(decoder) = config.shift_remove("added_tokens_decoder") {
            listed = reader.decoder(&decoder)?;
        } else {
            later = read_special_tokens_map(model_dir, &mut config, &mut specific)?;
            read_added_tokens(model_dir, &config, &mut listed.by_id)?;
            listed.by_id.extend(defaults.added);
            listed.name_all();
        }
        set_missing(&mut config, defaults.named, defaults.padding);
        rename_additional(&mut config, |extra| extra.is_none());
        let mut named = reader.standard(&config, &listed)?;
        later.extend(specific);
        rename(&mut named, later);
        let extra = reader.extra(&config)?;
        let split_special_tokens =
            config.get("split_special_tokens").is_some_and(|value| !is_falsy(value));
        Ok(Self { named, extra, listed: listed.by_id, split_special_tokens, config })
    }

    /// Returns the text of the token with this role.
    pub fn named(&self, role: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == role).map(|(_, token)| token.text())
    }
}

/// Renames `additional_special_tokens` of old files to `extra_special_tokens`.
fn rename_additional(config: &mut Map<String, Value>, is_missing: impl Fn(Option<&Value>) -> bool) {
    if is_missing(config.get("extra_special_tokens"))
        && let Some(tokens) = config.shift_remove("additional_special_tokens")
    {
        config.insert("extra_special_tokens".into(), tokens);
    }
}

/// Sets roles that no file names.
fn set_missing(
    config: &mut Map<String, Value>,
    named: &[(&str, Option<&str>)],
    padding: Option<String>,
) {
    for (role, token) in named {
        config.entry(*role).or_insert_with(|| token.map_or(Value::Null, Value::from));
    }
    if let Some(padding) = padding {
        config.entry("pad_token").or_insert_with(|| padding.into());
    }
}

/// Replaces the tokens of `named` by those of `later` that have the same role, and adds the others.
fn rename(named: &mut Vec<(String, SpecialToken)>, later: Vec<(String, SpecialToken)>) {
    for (role, token) in later {
        match named.iter_mut().find(|(known, _)| *known == role) {
            Some((_, known)) => *known = token,
            None => named.push((role, token)),
        }
    }
    // A standard role keeps its position, whichever file names it.
    named.sort_by_key(|(role, _)| {
        STANDARD.iter().position(|known| known == role).unwrap_or(STANDARD.len())
    });
}

/// Returns the tokens that `special_tokens_map.json` gives to roles that aren't standard. Its
/// standard roles go to `config`.
fn read_special_tokens_map(
    model_dir: &Path,
    config: &mut Map<String, Value>,
    specific: &mut Vec<(String, SpecialToken)>,
) -> Result<Vec<(String, SpecialToken)>> {
    let reader = SettingsReader { path: model_dir.join(SPECIAL_TOKENS_MAP_FILE) };
    let mut others = Vec::new();
    for (key, mut value) in read_object(&reader.path)?.unwrap_or_default() {
        if key == "extra_special_tokens" {
            if let Value::Object(tokens) = &value {
                specific.extend(reader.roles(tokens)?);
                continue;
            }
            value = reader.merged(config.get(&key), &value)?;
        } else if value.is_object() {
            value = special(&value);
        }
        if is_further_role(&key) && (value.is_string() || value.is_object()) {
            others.extend(reader.token(&key, Some(&value))?.map(|token| (key, token)));
        } else {
            config.insert(key, value);
        }
    }
    Ok(others)
}

/// Marks `token`, if it is an object, as an added and special token. In this file, objects don't
/// say so themselves.
fn special(token: &Value) -> Value {
    let mut token = token.clone();
    if let Value::Object(fields) = &mut token {
        fields.insert("special".into(), true.into());
        fields.insert(TYPE.into(), ADDED.into());
    }
    token
}

/// Reads the tokens of `added_tokens.json`. They are special if a role or the list of extra ones
/// names them.
fn read_added_tokens(
    model_dir: &Path,
    config: &Map<String, Value>,
    listed: &mut BTreeMap<i64, AddedToken>,
) -> Result<()> {
    let reader = SettingsReader { path: model_dir.join(ADDED_TOKENS_FILE) };
    let Some(tokens) = read_object(&reader.path)? else { return Ok(()) };
    let mut specials = HashSet::new();
    for role in STANDARD {
        specials.extend(reader.token(role, config.get(role))?.map(|token| token.text().to_owned()));
    }
    specials.extend(reader.extra(config)?.iter().map(|token| token.text().to_owned()));
    for (text, id) in tokens {
        // Only their order matters.
        let id = id.as_i64().or_else(|| Some(id.as_f64()?.floor() as i64));
        let id =
            id.ok_or_else(|| reader.malformed(format!("the id of {text:?} is not an integer")))?;
        let is_special = specials.contains(&text);
        listed.insert(id, AddedToken::from(text, is_special));
    }
    Ok(())
}

/// Returns whether `key` is the name of a role that isn't standard.
fn is_further_role(key: &str) -> bool {
    key.ends_with("_token") && !STANDARD.contains(&key)
}

/// Returns whether `value` is an object that is marked as an added token.
fn is_typed(value: &Value) -> bool {
    value[TYPE] == ADDED
}

/// Returns whether `value` is false in Python.
fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Converts values from the file `path`, which errors name.
struct SettingsReader {
    path: PathBuf,
}

impl SettingsReader {
    fn malformed(&self, what: String) -> Error {
        Error::new(Kind::Malformed, what).file(&self.path).remedy(
            "download the tokenizer's files again, or save the tokenizer again with transformers",
        )
    }

    fn object<'a>(&self, value: &'a Value, key: &str) -> Result<&'a Map<String, Value>> {
        value.as_object().ok_or_else(|| self.malformed(format!("{key} is not an object")))
    }

    fn list<'a>(&self, value: Option<&'a Value>) -> Result<&'a [Value]> {
        match value {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(tokens)) => Ok(tokens),
            Some(_) => Err(self.malformed("extra_special_tokens is not a list of tokens".into())),
        }
    }

    fn id(&self, text: &str) -> Result<i64> {
        text.trim().parse().map_err(|_| {
            self.malformed(format!("the id {text:?} of an added token is not an integer"))
        })
    }

    fn token(&self, role: &str, value: Option<&Value>) -> Result<Option<SpecialToken>> {
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(SpecialToken::Text(text.clone()))),
            Some(value @ Value::Object(_)) if is_typed(value) => {
                Ok(Some(SpecialToken::Added(self.added(value, Some(role))?)))
            }
            Some(Value::Object(_)) => {
                let what =
                    format!("{role} is an object that doesn't say that it is an added token");
                Err(Error::new(Kind::Malformed, what).file(&self.path).remedy(
                    "write \"__type\": \"AddedToken\" into it, as transformers does, or give its \"content\" as a text",
                ))
            }
            Some(_) => Err(self.malformed(format!("{role} is neither a text nor an added token"))),
        }
    }

    fn roles(&self, tokens: &Map<String, Value>) -> Result<Vec<(String, SpecialToken)>> {
        let mut roles = Vec::new();
        for (role, token) in tokens {
            roles.extend(self.token(role, Some(token))?.map(|token| (role.clone(), token)));
        }
        Ok(roles)
    }

    /// Returns the tokens of `added_tokens_decoder`.
    fn decoder(&self, decoder: &Value) -> Result<ListedTokens> {
        let mut listed = ListedTokens::default();
        for (id, token) in self.object(decoder, "added_tokens_decoder")? {
            let token = self.added(token, None)?;
            listed.by_text.insert(token.content.clone(), token.clone());
            listed.by_id.insert(self.id(id)?, token);
        }
        Ok(listed)
    }

    /// Returns the tokens of the standard roles, with the matching options that they are listed
    /// with.
    fn standard(
        &self,
        config: &Map<String, Value>,
        listed: &ListedTokens,
    ) -> Result<Vec<(String, SpecialToken)>> {
        let mut named = Vec::new();
        for role in STANDARD {
            if let Some(token) = self.token(role, config.get(role))? {
                let known = listed.by_text.get(token.text()).cloned().map(SpecialToken::Added);
                named.push((role.to_owned(), known.unwrap_or(token)));
            }
        }
        Ok(named)
    }

    /// Returns the additional special tokens.
    fn extra(&self, config: &Map<String, Value>) -> Result<Vec<SpecialToken>> {
        let mut extra = Vec::new();
        for token in self.list(config.get("extra_special_tokens"))? {
            extra.extend(self.token("extra_special_tokens", Some(token))?);
        }
        Ok(extra)
    }

    /// Appends tokens of another list to a list of extra tokens, without duplicates.
    fn merged(&self, known: Option<&Value>, others: &Value) -> Result<Value> {
        let mut tokens = self.list(known)?.to_vec();
        // There may be as many as a vocabulary has.
        let mut seen: HashSet<String> = tokens.iter().map(Value::to_string).collect();
        for token in self.list(Some(others))? {
            if seen.insert(token.to_string()) {
                tokens.push(special(token));
            }
        }
        Ok(tokens.into())
    }

    /// Takes the model's own roles out of `config`: keys that end in `_token`, and a dictionary of
    /// extra tokens.
    fn take_model_specific(
        &self,
        config: &mut Map<String, Value>,
    ) -> Result<Vec<(String, SpecialToken)>> {
        let own = config
            .iter()
            .filter(|(key, value)| is_further_role(key) && (value.is_string() || is_typed(value)));
        let mut keys: Vec<String> = own.map(|(key, _)| key.clone()).collect();
        // transformers extracts strings while other tokens are still objects, and puts these
        // objects first.
        keys.sort_by_key(|key| config[key].is_string());
        let mut roles = Vec::new();
        for key in keys {
            let token = self.token(&key, config.shift_remove(&key).as_ref())?;
            roles.extend(token.map(|token| (key, token)));
        }
        if let Some(Value::Object(tokens)) = config.get("extra_special_tokens").cloned() {
            config.shift_remove("extra_special_tokens");
            roles.extend(self.roles(&tokens)?);
        }
        if roles.is_empty()
            && let Some(Value::Object(tokens)) = config.get("model_specific_special_tokens")
        {
            roles = self.roles(tokens)?;
        }
        Ok(roles)
    }

    fn added(&self, value: &Value, role: Option<&str>) -> Result<AddedToken> {
        let fields = self.object(value, role.unwrap_or("an added token"))?;
        let Some(content) = fields.get("content").and_then(Value::as_str) else {
            return Err(self.malformed("an added token has no content".into()));
        };
        let flag = |key: &str| fields.get(key).and_then(Value::as_bool);
        let is_special = flag("special").unwrap_or(false);
        Ok(AddedToken::from(content, is_special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!is_special)))
    }
}
