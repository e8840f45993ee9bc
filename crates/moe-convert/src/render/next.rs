//! What to type next.

use std::path::Path;

use moe_model::{Answer, Verdict};
use moe_passes::Identity;
use moe_pipeline::{Conversion, HasTokenizer};

/// What stands behind a command that is given ids.
const IDS: &str =
    "   # {\"input_ids\": [1, 2, …]} a line: there is no tokenizer.json to make tokens of text";

/// Commands that make sense for what was just written, the cheapest first.
pub fn steps(input: &Path, output: &Path, done: &Conversion) -> Vec<String> {
    let receipt = &done.receipt;
    let path = |path: &Path| word(&path.to_string_lossy());
    let (from, out) = (path(input), path(output));
    // Where nothing here makes tokens of text, ids are what can be given.
    let data = if done.tokenizer == HasTokenizer::Here { "TEXT" } else { "IDS.jsonl" };
    let ids = if done.tokenizer == HasTokenizer::Here { "" } else { IDS };
    let mut steps = vec![format!("moe-convert verify {out}")];
    if receipt.held_out.is_none()
        && receipt.training.as_ref().is_none_or(|training| training.after.is_none())
    {
        steps.push(format!("moe-convert eval {out} --original {from} --data {data}{ids}"));
    }
    if let Some(train) = receipt.pass.healed_with.filter(|_| done.heals) {
        // Where the function is the same, the original has nothing to teach.
        let teacher = if receipt.identity == Identity::Exact {
            String::new()
        } else {
            format!(" --original {from}")
        };
        let healed = path(&output.with_file_name(format!("{}-healed", name(output))));
        steps
            .push(format!("moe-convert heal {out} -o {healed}{train}{teacher} --data {data}{ids}"));
    }
    // Families are those that engines know; what may keep one from serving a result is its
    // quantization.
    let skip = if done.tokenizer == HasTokenizer::Nowhere { " --skip-tokenizer-init" } else { "" };
    if done.engines.is_empty() {
        steps.push(format!("vllm serve {out}{skip}"));
    }
    let served =
        |verdict: &&Verdict| verdict.engine.starts_with("vLLM") && verdict.answer == Answer::Takes;
    steps.extend(done.engines.iter().find(served).map(|verdict| match verdict.says.as_str() {
        "" => format!("vllm serve {out}{skip}   # {}", verdict.engine),
        says => format!("vllm serve {out}{skip}   # {}: {says}", verdict.engine),
    }));
    steps
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `text` as a word of a shell.
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "./_-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_a_shell() {
        let words = ["out/moe-8x", "my models/it's", ""].map(word);
        assert_eq!(words, ["out/moe-8x", r"'my models/it'\''s'", "''"]);
    }
}
