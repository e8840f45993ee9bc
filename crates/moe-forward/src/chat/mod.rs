//! Chat templates: render `messages` to text, as transformers' `apply_chat_template` does.

mod dates;
#[cfg(test)]
mod golden;
mod jinja;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chrono::NaiveDateTime;
use moe_checkpoint::{Error, Kind, Result, read_text};
use serde_json::{Map, Value};

use crate::tokenizer::{TOKENIZER_CONFIG_FILE, read_config};
use jinja::{Template, TemplateLimits};

pub use dates::Clock;
pub(crate) use dates::Dates;

/// Maximum size of a template; those of models have about 10 KiB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The folder of additional templates, whose file names are their names.
const FURTHER_TEMPLATES: &str = "additional_chat_templates";
/// Keys of a message's reasoning; templates read the first of these.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A checkpoint's chat templates, with its special tokens.
pub(crate) struct ChatTemplate {
    templates: Vec<TemplateSource>,
    /// Whether templates have names; then one is chosen by the content of a conversation.
    are_named: bool,
    tokens: Vec<(String, String)>,
    limits: TemplateLimits,
}

struct TemplateSource {
    name: String,
    text: String,
    file: PathBuf,
    parsed: OnceLock<Template>,
}

impl TemplateSource {
    fn new(name: &str, text: String, file: &Path) -> Self {
        Self { name: name.to_owned(), text, file: file.to_owned(), parsed: OnceLock::new() }
    }

    fn template(&self) -> Result<&Template> {
        if let Some(template) = self.parsed.get() {
            return Ok(template);
        }
        let template = Template::parse(&self.text).map_err(|e| bad_template(e).file(&self.file))?;
        Ok(self.parsed.get_or_init(|| template))
    }
}

impl ChatTemplate {
    /// Reads the templates of the checkpoint in `model_dir`. Files take precedence over
    /// `tokenizer_config.json`. `tokens` are the texts of special tokens by role, which templates
    /// can refer to.
    ///
    /// # Errors
    /// [`Kind::Missing`] if there is no template, [`Kind::Malformed`] for one that is not text.
    pub fn load(model_dir: &Path, tokens: Vec<(String, String)>) -> Result<Self> {
        let mut templates = Vec::new();
        for file in template_files(model_dir)? {
            let is_main = file.file_name().is_some_and(|name| name == TEMPLATE_FILE)
                && file.parent() == Some(model_dir);
            let stem = file.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            let name = if is_main { "default" } else { stem };
            templates.retain(|known: &TemplateSource| known.name != name);
            templates.push(TemplateSource::new(name, read_text(&file, MAX_TEMPLATE_BYTES)?, &file));
        }
        let mut are_named = templates.iter().any(|template| template.name != "default");
        if templates.is_empty() {
            let config = read_config(model_dir)?;
            (templates, are_named) =
                of_config(config.get("chat_template"), &model_dir.join(TOKENIZER_CONFIG_FILE))?;
        }
        if templates.is_empty() {
            return Err(no_template(model_dir));
        }
        Ok(Self { templates, are_named, tokens, limits: TemplateLimits::USUAL })
    }

    /// Limits the memory that the run may hold to `memory` bytes.
    pub fn within(self, memory: Option<u64>) -> Self {
        Self { limits: TemplateLimits::within(memory), ..self }
    }

    /// Renders a conversation without a prompt for a further answer, and returns the text and the
    /// dates that the template wrote. `tools` are the tools that its assistant may call, if any.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for messages that the template refuses, for unsupported features, and
    /// for a template that takes more steps or memory than a conversation needs;
    /// [`Kind::Malformed`] for messages of another form.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        now: NaiveDateTime,
    ) -> Result<(String, Dates)> {
        let messages = normalized(messages)?;
        let tools = tools.filter(|tools| !tools.is_null());
        if !tools.is_none_or(are_objects) {
            return Err(Error::new(Kind::Malformed, "\"tools\" is not a list of objects")
                .remedy("give each tool as a JSON schema, or leave \"tools\" out"));
        }
        let source = self.choose(tools.is_some())?;
        let given = [
            ("messages", messages),
            ("tools", tools.cloned().unwrap_or_default()),
            ("documents", Value::Null),
            ("add_generation_prompt", false.into()),
        ];
        let tokens = self.tokens.iter().map(|(role, text)| (role.clone(), text.as_str().into()));
        let variables = tokens.chain(given.map(|(name, value)| (name.to_owned(), value))).collect();
        let rendered = source.template()?.render(variables, now, self.limits, &source.file);
        rendered.map_err(|e| bad_template(e).file(&source.file))
    }

    fn choose(&self, has_tools: bool) -> Result<&TemplateSource> {
        let found = match &self.templates[..] {
            [only] if !self.are_named => Some(only),
            _ => {
                let for_tools = self.named("tool_use").filter(|_| has_tools);
                for_tools.or_else(|| self.named("default"))
            }
        };
        found.ok_or_else(|| {
            let names: Vec<_> =
                self.templates.iter().map(|template| template.name.as_str()).collect();
            let what = format!("these chat templates have no default: {}", names.join(", "));
            Error::new(Kind::Unsupported, what)
                .file(&self.templates[0].file)
                .remedy("name one of them \"default\", or give \"text\" instead of \"messages\"")
        })
    }

    fn named(&self, name: &str) -> Option<&TemplateSource> {
        self.templates.iter().find(|template| template.name == name)
    }
}

/// Lists the files of chat templates in `model_dir`, the main one first.
///
/// # Errors
/// [`Kind::Io`] if the folder of additional templates can't be listed.
pub(crate) fn template_files(model_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut further = Vec::new();
    let folder = model_dir.join(FURTHER_TEMPLATES);
    if folder.is_dir() {
        further =
            files(&folder).map_err(|e| Error::io("cannot list the chat templates", &folder, e))?;
        further.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
        further.sort();
    }
    let main = model_dir.join(TEMPLATE_FILE);
    // A dangling link is an error, not a missing file.
    let main = main.symlink_metadata().is_ok().then_some(main);
    Ok(main.into_iter().chain(further).collect())
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Returns the templates under `chat_template` of `tokenizer_config.json`, `file`, and whether they
/// have names.
fn of_config(value: Option<&Value>, file: &Path) -> Result<(Vec<TemplateSource>, bool)> {
    match value {
        None | Some(Value::Null) => Ok((Vec::new(), false)),
        Some(Value::String(text)) => {
            Ok((vec![TemplateSource::new("default", text.clone(), file)], false))
        }
        Some(Value::Array(list)) => {
            let mut templates = Vec::new();
            for entry in list {
                let source = named_source(entry["name"].as_str(), &entry["template"], file)?;
                templates.retain(|known: &TemplateSource| known.name != source.name);
                templates.push(source);
            }
            Ok((templates, true))
        }
        Some(Value::Object(named)) => {
            let sources = named.iter().map(|(name, text)| named_source(Some(name), text, file));
            Ok((sources.collect::<Result<_>>()?, true))
        }
        Some(_) => Err(not_templates(file)),
    }
}

fn named_source(name: Option<&str>, text: &Value, file: &Path) -> Result<TemplateSource> {
    match (name, text.as_str()) {
        (Some(name), Some(text)) => Ok(TemplateSource::new(name, text.to_owned(), file)),
        _ => Err(not_templates(file)),
    }
}

fn not_templates(file: &Path) -> Error {
    Error::new(Kind::Malformed, "chat_template is neither a template nor a list of named ones")
        .file(file)
        .remedy("give \"text\" instead of \"messages\", or add chat_template.jinja")
}

/// Prepares `messages` as `apply_chat_template` does: drops keys whose value is null, and copies
/// reasoning to each of the names that templates know.
fn normalized(messages: &Value) -> Result<Value> {
    let list = messages.as_array().ok_or_else(|| bad_messages("\"messages\" is not a list"))?;
    if list.is_empty() {
        return Err(bad_messages("\"messages\" has no message"));
    }
    Ok(Value::Array(list.iter().map(normalized_message).collect::<Result<_>>()?))
}

fn normalized_message(message: &Value) -> Result<Value> {
    let fields = message.as_object().ok_or_else(|| bad_messages("a message is not an object"))?;
    let given = fields.iter().filter(|(_, value)| !value.is_null());
    let reasoning =
        REASONING.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
    let mut result = Map::new();
    if let Some(reasoning) = reasoning {
        result.insert("thinking".into(), reasoning.clone());
    }
    result.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        result.insert("reasoning_content".into(), reasoning.clone());
    }
    Ok(Value::Object(result))
}

fn are_objects(values: &Value) -> bool {
    values.as_array().is_some_and(|values| values.iter().all(Value::is_object))
}

fn bad_messages(what: &str) -> Error {
    Error::new(Kind::Malformed, what)
        .remedy("\"messages\" is a list of objects with \"role\" and \"content\"")
}

fn no_template(model_dir: &Path) -> Error {
    Error::new(Kind::Missing, "this checkpoint has no chat template, which \"messages\" need")
        .file(model_dir)
        .remedy("give \"text\" instead, or add chat_template.jinja")
}

fn bad_template(error: jinja::Fail) -> Error {
    Error::new(Kind::Unsupported, "the chat template can't be rendered")
        .source(error)
        .remedy("mend the template, or give \"text\" instead of \"messages\"")
}
