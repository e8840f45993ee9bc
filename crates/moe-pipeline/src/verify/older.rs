//! Finds what transformers before 5 fails at where the current version loads
//! (`golden/loaders/verdicts.py`, 4.57.6), and what no version loads without another package.

use moe_checkpoint::{Checkpoint, SideFiles, json};
use moe_model::{Family, Model};
use serde_json::{Map, Value};

use super::{generation, tokenizer};

/// Classes of tokenizers that exist in transformers 4.57.6 as `…TokenizerFast` and `…Tokenizer`,
/// without these endings.
const FAST: &str = "Albert Bart Barthez Bert BigBird Blenderbot BlenderbotSmall Bloom CLIP Camembert CodeGen CodeLlama Cohere \
    ConvBert Cpm DPRContextEncoder DPRQuestionEncoder DPRReader Deberta DebertaV2 DistilBert Electra FNet Funnel GPT2 GPTNeoX Gemma \
    Herbert LED LayoutLM LayoutLMv2 LayoutLMv3 LayoutXLM Llama Longformer Lxmert MBart MBart50 MPNet MT5 MarkupLM MobileBert Mvp \
    Nllb Nougat OpenAIGPT Parakeet Pegasus PreTrained Qwen2 Realm Reformer RemBert RetriBert RoFormer Roberta SeamlessM4T Splinter \
    SqueezeBert T5 Udop Whisper XGLM XLMRoberta XLNet";
/// Classes of which only `…Tokenizer` exists there.
const SLOW: &str = "Bartpho Basic BertGeneration BertJapanese Bertweet BioGpt ByT5 CTRL Canine Character Clvp CpmAnt Dia ErnieM Esm \
    FSMT FastSpeech2Conformer Flaubert GPTNeoXJapanese GPTSanJapanese GPTSw3 Jukebox Luke M2M100 MLuke Marian Mecab Mgpstr \
    MistralCommon MyT5 PLBart Perceiver Phobert Pop2Piano ProphetNet Rag RoCBert Siglip Speech2Text Speech2Text2 SpeechT5 TFBert \
    TFGPT2 Tapas Tapex TransfoXL Vits Wav2Vec2 Wav2Vec2CTC Wav2Vec2PhonemeCTC Wordpiece XLM XLMProphetNet";

/// A key, and whether older versions accept a value for it.
type Rule = (&'static str, fn(&Value) -> bool);

/// Keys of a config at which older versions fail.
const CONFIG_RULES: [Rule; 7] = [
    ("rope_theta", |theta| !theta.is_null()),
    ("base_model_tp_plan", is_object_or_null),
    ("base_model_pp_plan", is_object_or_null),
    ("base_model_ep_plan", is_object_or_null),
    ("label2id", is_object_or_null),
    ("problem_type", is_problem_or_null),
    ("pruned_heads", |heads| heads.is_null() || heads.as_object().is_some_and(Map::is_empty)),
];
/// Keys of a tokenizer's config at which older versions fail.
const TOKENIZER_RULES: [Rule; 2] = [
    ("extra_special_tokens", Value::is_object),
    ("additional_special_tokens", |tokens| !tokens.is_object()),
];

/// Notes on `checkpoint`, one sentence each.
pub(super) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let config = checkpoint.config();
    let mut notes = of_rules("config.json", config, &CONFIG_RULES);
    notes.extend(of_rope(config, model));
    notes.extend(of_attention(config));
    notes.extend(of_format(checkpoint));
    notes.extend(of_side_files(checkpoint.side_files()));
    notes.extend(of_blocks(config));
    notes
}

fn of_rules(file: &str, said: &Map<String, Value>, rules: &[Rule]) -> Vec<String> {
    let wrong = rules
        .iter()
        .filter_map(|(key, takes)| Some((key, said.get(*key).filter(|value| !takes(value))?)));
    let note = |(key, value): (&&str, &Value)| {
        format!("{file} says {key} {}, at which transformers before 5 fails", json::shown(value))
    };
    wrong.map(note).collect()
}

fn is_object_or_null(value: &Value) -> bool {
    value.is_null() || value.is_object()
}

fn is_problem_or_null(value: &Value) -> bool {
    const KINDS: [&str; 3] =
        ["regression", "single_label_classification", "multi_label_classification"];
    value.is_null() || value.as_str().is_some_and(|kind| KINDS.contains(&kind))
}

/// Rotary parameters that older configs compute with.
fn of_rope(config: &Map<String, Value>, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(scaling) = config.get("rope_scaling").and_then(Value::as_object) {
        notes.extend(of_rope_scaling(scaling, model.family));
        notes.extend(of_yarn(config, scaling, model.family));
    }
    if config.get("partial_rotary_factor").is_some_and(Value::is_null) {
        notes.push(
            "config.json says partial_rotary_factor null, at which transformers before 5 fails: remove it".to_owned(),
        );
    }
    notes
}

/// Keys that the family needs in `scaling`, and that must be numbers there.
fn of_rope_scaling(scaling: &Map<String, Value>, family: &Family) -> Vec<String> {
    let Some(rule) = &family.older_rope_scaling else { return Vec::new() };
    let missing = rule.needs.iter().filter(|key| !scaling.contains_key(*key));
    let missing = missing.map(|key| {
        format!(
            "config.json has a rope_scaling without {key}, at which transformers before 5 fails in this family; any pass \
             of this program leaves out a rope_scaling that changes nothing"
        )
    });
    let wrong = rule.numbers.iter().filter(|key| scaling.get(*key).is_some_and(Value::is_null));
    let wrong = wrong.filter(|key| *key != "factor").map(|key| {
        format!("config.json says rope_scaling.{key} null, at which transformers before 5 fails in this family: remove it")
    });
    missing.chain(wrong).collect()
}

/// The lack of a key that the family needs for yarn.
fn of_yarn(
    config: &Map<String, Value>,
    scaling: &Map<String, Value>,
    family: &Family,
) -> Option<String> {
    let key = family.older_yarn_needs.as_ref()?;
    let kind = scaling.get("type").or(scaling.get("rope_type"));
    let is_yarn = kind.is_some_and(|kind| kind == "yarn");
    (is_yarn && config.get(key).is_none_or(Value::is_null)).then(|| {
        format!(
            "config.json has no {key}, without which transformers before 5 can't compute yarn in this family"
        )
    })
}

/// Attention kernels that need another package in every version.
fn of_attention(config: &Map<String, Value>) -> Option<String> {
    let said = config.get("_attn_implementation")?;
    let name = said.as_str().map(|name| name.trim_start_matches("paged|"))?;
    let package = match name {
        "flash_attention_2" | "flash_attention_3" | "flash_attention_4" => {
            "the package of these kernels (flash-attn) and a GPU"
        }
        name if name.contains('/') => "the package kernels, and these from the hub",
        _ => return None,
    };
    Some(format!(
        "config.json says _attn_implementation {name:?}: transformers loads it only with {package}; remove the key, and it chooses"
    ))
}

/// `load_state_dict` of versions before 5 reads from the first file which library wrote it.
fn of_format(checkpoint: &Checkpoint) -> Option<String> {
    let file = checkpoint.files().first()?;
    let format = file.format().filter(|format| !["pt", "mlx"].contains(format))?;
    let name = file.path().file_name()?.to_string_lossy().into_owned();
    let what = match format {
        "" => format!(
            "the metadata of {name} names no format, without which transformers before 5 refuses it"
        ),
        "tf" => format!(
            "the metadata of {name} says format \"tf\", which transformers before 5 loads through TensorFlow alone"
        ),
        "flax" => {
            format!(
                "the metadata of {name} says format \"flax\", which transformers before 5 loads through JAX alone"
            )
        }
        format => format!(
            "the metadata of {name} says format {format:?}, which transformers before 5 refuses"
        ),
    };
    Some(what + "; any pass of this program writes \"pt\"")
}

fn of_side_files(files: &SideFiles) -> Vec<String> {
    let mut notes = of_generation(&said(generation::CONFIG, files));
    let tokenizer = said(tokenizer::CONFIG, files);
    notes.extend(of_rules(tokenizer::CONFIG, &tokenizer, &TOKENIZER_RULES));
    notes.extend(of_tokenizer_class(&tokenizer));
    notes
}

/// The file `name` among `files`; empty if it can't be read.
fn said(name: &str, files: &SideFiles) -> Map<String, Value> {
    let file = files.carried.iter().find(|file| file.name == name);
    file.and_then(|file| json::read_python(&file.path).ok()).unwrap_or_default()
}

fn of_generation(said: &Map<String, Value>) -> Vec<String> {
    let wrong = [
        ("early_stopping", said.get("early_stopping").is_some_and(Value::is_null)),
        ("num_return_sequences", has_sequences(said)),
    ];
    let note = |(key, _): (&str, bool)| {
        let value = json::shown(&said[key]);
        let file = generation::CONFIG;
        format!(
            "{file} says {key} {value}, at which transformers before 5 refuses the model: remove it"
        )
    };
    wrong.into_iter().filter(|(_, is_wrong)| *is_wrong).map(note).collect()
}

fn of_tokenizer_class(said: &Map<String, Value>) -> Option<String> {
    let class = said.get("tokenizer_class").and_then(Value::as_str)?;
    (!is_older_class(class)).then(|| {
        format!(
            "{} says tokenizer_class {class:?}, which transformers before 5 doesn't have: its AutoTokenizer fails; \
             PreTrainedTokenizerFast reads tokenizer.json in all versions",
            tokenizer::CONFIG
        )
    })
}

/// Whether the file asks for sequences, even none, without sampling or beams. Values that the newer
/// version refuses give no note.
fn has_sequences(said: &Map<String, Value>) -> bool {
    let is_one = |value: &Value| *value == true || json::number(value) == Some(1.0);
    let samples = said.get("do_sample").is_some_and(json::is_true);
    let has_beams = said.get("num_beams").is_some_and(|beams| !is_one(beams));
    !samples && !has_beams && said.get("num_return_sequences").is_some_and(|count| !is_one(count))
}

/// Whether transformers 4.57.6 finds the tokenizer class `name`. It looks for the fast one first.
fn is_older_class(name: &str) -> bool {
    let is_in = |stems: &str, stem: &str| stems.split_whitespace().any(|known| known == stem);
    match name.strip_suffix("Fast").unwrap_or(name).strip_suffix("Tokenizer") {
        Some(stem) => is_in(FAST, stem) || !name.ends_with("Fast") && is_in(SLOW, stem),
        None => false,
    }
}

/// Hugging Face's fp8 without the size of its blocks.
fn of_blocks(config: &Map<String, Value>) -> Option<String> {
    let said = config.get("quantization_config")?;
    let is_fp8 = said.get("quant_method").is_some_and(|method| method == "fp8");
    (is_fp8 && said.get("weight_block_size").is_none()).then(|| {
        "quantization_config has no weight_block_size: transformers takes blocks of 128 × 128, vLLM a scale for each matrix; \
         any pass of this program writes it"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_older_versions_are_known() {
        let known = [
            "LlamaTokenizer",
            "LlamaTokenizerFast",
            "PreTrainedTokenizerFast",
            "Qwen2Tokenizer",
            "ByT5Tokenizer",
        ];
        let unknown =
            ["TokenizersBackend", "NoSuch", "ByT5TokenizerFast", "Qwen3_5Tokenizer", "Tokenizer"];
        known.iter().for_each(|name| assert!(is_older_class(name), "{name}"));
        unknown.iter().for_each(|name| assert!(!is_older_class(name), "{name}"));
    }
}
