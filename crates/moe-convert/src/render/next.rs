//! Commands that the user may type next.

use std::path::Path;

use moe_checkpoint::shell_word;
use moe_model::Answer;
use moe_passes::Identity;
use moe_pipeline::{Conversion, HasTokenizer};

/// The note on a command that is given ids.
const IDS: &str =
    "   # {\"input_ids\": [1, 2, …]} a line: there is no tokenizer.json to make tokens of text";

/// Returns commands that make sense for the result, the cheapest first.
pub fn steps(input: &Path, output: &Path, done: &Conversion) -> Vec<String> {
    let receipt = &done.receipt;
    let (from, out) = (path_word(input), path_word(output));
    let mut steps = vec![format!("moe-convert verify {out}")];
    let is_measured = receipt.held_out.is_some()
        || receipt.training.as_ref().is_some_and(|training| training.after.is_some());
    if !is_measured {
        let data = data(done);
        steps.push(format!("moe-convert eval {out} --original {from} --data {data}"));
    }
    steps.extend(heal(&from, output, done));
    steps.extend(serve(&out, done));
    steps
}

/// A placeholder for text, or for ids where the result has no tokenizer here.
fn data(done: &Conversion) -> String {
    if done.tokenizer == HasTokenizer::Here { "TEXT".to_owned() } else { format!("IDS.jsonl{IDS}") }
}

/// Returns the command that trains the result; None if it can't be trained.
fn heal(from: &str, output: &Path, done: &Conversion) -> Option<String> {
    let train = done.receipt.pass.healed_with.filter(|_| done.heals)?;
    // Where the function is the same, the original has nothing to teach.
    let teacher = if done.receipt.identity == Identity::Exact {
        String::new()
    } else {
        format!(" --original {from}")
    };
    let out = path_word(output);
    let healed = path_word(&output.with_file_name(format!("{}-healed", name(output))));
    Some(format!("moe-convert heal {out} -o {healed}{train}{teacher} --data {}", data(done)))
}

/// Returns the command that serves the result with vLLM; None if vLLM can't serve it. Engines know
/// all families here; only a quantization may keep one from serving a result.
fn serve(out: &str, done: &Conversion) -> Option<String> {
    let skip = if done.tokenizer == HasTokenizer::Nowhere { " --skip-tokenizer-init" } else { "" };
    if done.engines.is_empty() {
        return Some(format!("vllm serve {out}{skip}"));
    }
    let verdict = done
        .engines
        .iter()
        .find(|verdict| verdict.engine.starts_with("vLLM") && verdict.answer == Answer::Takes)?;
    Some(match verdict.says.as_str() {
        "" => format!("vllm serve {out}{skip}   # {}", verdict.engine),
        says => format!("vllm serve {out}{skip}   # {}: {says}", verdict.engine),
    })
}

fn path_word(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
