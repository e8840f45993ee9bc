//! Chat templates: `messages` to text, as transformers' `apply_chat_template` renders them.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};
use moe_checkpoint::{Error, Kind, Result, json, read_text};

use crate::allowance::limited;

/// The longest template that is read; those of models have some 10 KiB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// A template is a program out of a checkpoint, which may never end. A conversation takes a hundred instructions a message.
const MAX_INSTRUCTIONS: u64 = 10_000_000;

/// A checkpoint's chat template, with its special tokens.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Value,
    /// Where it stands.
    file: PathBuf,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else the key `chat_template` of `tokenizer_config.json`.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("tokenizer_config.json");
        let config: serde_json::Value = if path.is_file() { json::read_tree(&path)? } else { serde_json::Value::Null };
        let file = model_dir.join("chat_template.jinja");
        let (template, file) = match (file.exists(), config["chat_template"].as_str()) {
            (true, _) => (read_text(&file, MAX_TEMPLATE_BYTES)?, file),
            (false, Some(text)) => (text.to_owned(), path),
            (false, None) => {
                return Err(Error::new(Kind::Missing, "this checkpoint has no chat template, which \"messages\" need")
                    .file(model_dir)
                    .remedy("give \"text\" instead, or add chat_template.jinja"));
            }
        };
        let mut environment = Environment::new();
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", template).map_err(|e| bad_template(e).file(&file))?;
        let token = |key: &str| match &config[key] {
            serde_json::Value::String(text) => text.clone(),
            other => other["content"].as_str().unwrap_or_default().to_owned(),
        };
        let tokens = context! {
            bos_token => token("bos_token"), eos_token => token("eos_token"),
            pad_token => token("pad_token"), unk_token => token("unk_token"),
        };
        Ok(Self { environment, tokens, file })
    }

    /// The conversation as text, without a prompt for a further answer.
    pub fn render(&self, messages: &serde_json::Value) -> Result<String> {
        let render = || {
            let template = self.environment.get_template("chat")?;
            let messages = Value::from(Serde(messages));
            template.render(context! { messages, add_generation_prompt => false, ..self.tokens.clone() })
        };
        limited(&self.file, render).map_err(|e| bad_template(e).file(&self.file))
    }
}

fn bad_template(error: minijinja::Error) -> Error {
    Error::new(Kind::Unsupported, "the chat template can't be rendered")
        .source(error)
        .remedy("give \"text\" instead of \"messages\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ChatML as SmolLM2 and Qwen ship it, rendered by hand.
    const CHATML: &str = "{% for message in messages %}\n{% if loop.first and messages[0]['role'] != 'system' %}\n\
        {{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\n{% endif %}\n\
        {{ '<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}\n\
        {% endfor %}\n{% if add_generation_prompt %}{{ 'never' }}{% endif %}{{ eos_token }}";

    fn render(template: &str, messages: &str) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "</s>"}}"#).unwrap();
        ChatTemplate::load(dir.path())?.render(&serde_json::from_str(messages).unwrap())
    }

    #[test]
    fn a_conversation_is_rendered_as_jinja_does() {
        let text = render(CHATML, r#"[{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes"}]"#);
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n\n<|im_start|>user\nHi<|im_end|>\n\n\
                        <|im_start|>assistant\nYes<|im_end|>\n\n</s>";
        assert_eq!(text.unwrap(), expected);
    }

    #[test]
    fn a_template_that_refuses_says_why() {
        let error = render("{{ raise_exception('roles must alternate') }}", "[]").unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_template_without_end_is_stopped() {
        let error = render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "[]");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("fuel") && error.contains("remedy"), "{error}");
    }

    #[test]
    fn no_template_is_said_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = ChatTemplate::load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("no chat template") && error.contains("remedy"), "{error}");
    }
}
