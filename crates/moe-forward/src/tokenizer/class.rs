//! The tokenizer classes of transformers. Most use `tokenizer.json` as it is. Some use only its
//! vocabulary and merges, with a normalizer and pre-tokenizer of their own, so that the same file
//! gives other tokens.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result};
use moe_model::TokenizerRule;
use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::settings::{SpecialToken, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, TokenizerSettings};

/// The pattern by which `Qwen2Tokenizer` of transformers 5.23 splits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern by which `Qwen3_5Tokenizer` of transformers 5.23 splits.
const QWEN3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Classes of transformers 5.23 with special behavior that isn't implemented here.
const OTHERS: &str = "Albert Bart Barthez Bartpho Bert BertTokenizerLegacy BertGeneration BertJapanese Bertweet BigBird BioGpt \
    Blenderbot BlenderbotSmall ByT5 Camembert Canine CLIP Clvp CodeLlama CodeGen ConvBert Cpm CpmAnt CTRL Deberta DebertaV2 Dia \
    DistilBert DPRContextEncoder DPRQuestionEncoder DPRReader Electra Esm Esmc FastSpeech2Conformer Flaubert FNet FSMT Funnel \
    GPTNeoXJapanese GPTSw3 Herbert Lasr LayoutLM LayoutLMv2 LayoutLMv3 LayoutXLM LED Longformer Luke Lxmert M2M100 Marian MarkupLM MBart MBart50 Mgpstr MLuke MobileBert Mvp \
    MPNet MyT5 Nllb Nougat OpenAIGPT Parakeet Pegasus Perceiver Phobert PLBart Pop2Piano ProphetNet Rag Reformer RemBert Roberta \
    RoCBert RoFormer SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter SqueezeBert T5 Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC \
    Wav2Vec2PhonemeCTC Whisper XGLM XLM XLMRoberta XLNet";

/// Tokens by role; None if the class has no token for a role.
type DefaultTokens = &'static [(&'static str, Option<&'static str>)];

const END: Option<&str> = Some("<|endoftext|>");
const LLAMA_TOKENS: DefaultTokens =
    &[("unk_token", Some("<unk>")), ("bos_token", Some("<s>")), ("eos_token", Some("</s>"))];
const QWEN_TOKENS: DefaultTokens =
    &[("unk_token", END), ("bos_token", None), ("eos_token", END), ("pad_token", END)];
const GPT2_TOKENS: DefaultTokens =
    &[("unk_token", END), ("bos_token", END), ("eos_token", END), ("pad_token", None)];
const GPT_NEOX_TOKENS: DefaultTokens = &[
    ("unk_token", END),
    ("bos_token", END),
    ("eos_token", END),
    ("pad_token", Some("<|padding|>")),
];
const GEMMA_TOKENS: DefaultTokens = &[
    ("unk_token", Some("<unk>")),
    ("bos_token", Some("<bos>")),
    ("eos_token", Some("<eos>")),
    ("pad_token", Some("<pad>")),
    ("mask_token", Some("<mask>")),
];
const COHERE_TOKENS: DefaultTokens = &[
    ("unk_token", Some("<UNK>")),
    ("bos_token", Some("<BOS_TOKEN>")),
    ("eos_token", Some("<|END_OF_TURN_TOKEN|>")),
    ("pad_token", Some("<PAD>")),
    ("cls_token", Some("<CLS>")),
    ("sep_token", Some("<SEP>")),
    ("mask_token", Some("<MASK_TOKEN>")),
];

/// How transformers makes a tokenizer from `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The file is used as it is (`TokenizersBackend`, `PreTrainedTokenizerFast`, and every name
    /// that transformers doesn't know).
    Backend,
    Llama,
    Qwen2,
    Qwen3_5,
    Gpt2,
    GptNeoX,
    Gemma,
    Cohere,
}

/// Names of the generic classes, without the suffix `Fast`.
const GENERIC: [&str; 4] =
    ["TokenizersBackend", "PythonBackend", "PreTrainedTokenizer", "MistralCommonBackend"];

fn without_fast(name: &str) -> &str {
    name.strip_suffix("Fast").unwrap_or(name)
}

/// Returns whether code that comes with the model makes the tokenizer.
fn has_own_code(tokenizer_config: &Map<String, Value>) -> bool {
    match tokenizer_config.get("auto_map") {
        Some(Value::Array(_)) => true,
        Some(map) => !map["AutoTokenizer"].is_null(),
        None => false,
    }
}

/// Returns which parts of a text Llama's tokenizer puts a space before.
fn prepended(prefix: Option<bool>, settings: &TokenizerSettings) -> PrependScheme {
    // Legacy classes put a space before every part of a text, not only before the first.
    let is_legacy = settings.config.get("legacy").and_then(Value::as_bool).unwrap_or(false);
    match prefix {
        Some(false) => PrependScheme::Never,
        _ if is_legacy => PrependScheme::Always,
        _ => PrependScheme::First,
    }
}

impl Class {
    /// Returns the class of this name or, as in transformers, the generic one if there is no such
    /// class.
    fn named(name: &str) -> Result<Self> {
        Ok(match without_fast(name) {
            "LlamaTokenizer" => Self::Llama,
            // transformers has no class of this name and uses that of the family; it has none for
            // "Phi3TokenizerFast" either.
            "Phi3Tokenizer" if name == "Phi3Tokenizer" => Self::Llama,
            "Qwen2Tokenizer" => Self::Qwen2,
            "Qwen3_5Tokenizer" => Self::Qwen3_5,
            "GPT2Tokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "GemmaTokenizer" => Self::Gemma,
            "CohereTokenizer" => Self::Cohere,
            other => {
                let stem = other.strip_suffix("Tokenizer").unwrap_or(other);
                if OTHERS.split_whitespace().any(|known| known == stem) {
                    let what = format!("tokenizers of the class {name} are not supported");
                    return Err(Error::new(Kind::Unsupported, what).remedy(AS_THE_FILE_SAYS));
                }
                Self::Backend
            }
        })
    }

    /// Returns the class that `AutoTokenizer` chooses for a model with this `config.json` and
    /// `tokenizer_config.json`, whose family has `rule`. `byte_level` is whether its
    /// `tokenizer.json` mentions byte-level parts.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a class that isn't implemented here.
    pub fn choose(
        rule: Option<&TokenizerRule>,
        config: &Value,
        tokenizer_config: &Map<String, Value>,
        byte_level: bool,
    ) -> Result<Self> {
        let own = tokenizer_config.get("tokenizer_class").and_then(Value::as_str);
        let declared = own.or(config["tokenizer_class"].as_str());
        let Some(declared) = declared else {
            return rule.map_or(Ok(Self::Backend), |rule| Self::named(&rule.class));
        };
        let is_trusted = rule.is_none_or(|rule| !rule.overrules);
        if has_own_code(tokenizer_config) {
            return Self::named(declared);
        }
        if without_fast(declared) == "LlamaTokenizer" && is_trusted && byte_level {
            return Ok(Self::Backend);
        }
        match rule {
            Some(rule) if without_fast(&rule.class) != without_fast(declared) => {
                if GENERIC.contains(&without_fast(&rule.class)) {
                    return Ok(Self::Backend);
                }
                Self::named(if is_trusted { declared } else { &rule.class })
            }
            _ => Self::named(declared),
        }
    }

    /// Returns the special tokens of the class, which hold unless a file names others.
    pub fn defaults(self) -> DefaultTokens {
        match self {
            Self::Backend => &[],
            Self::Llama => LLAMA_TOKENS,
            Self::Qwen2 | Self::Qwen3_5 => QWEN_TOKENS,
            Self::Gpt2 => GPT2_TOKENS,
            Self::GptNeoX => GPT_NEOX_TOKENS,
            Self::Gemma => GEMMA_TOKENS,
            Self::Cohere => COHERE_TOKENS,
        }
    }

    /// Converts `read`, the tokenizer of `tokenizer.json`, to the class's. Added tokens are left
    /// out: the settings list them.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the class needs another model than the file has.
    pub fn rebuild(
        self,
        read: Tokenizer,
        settings: &TokenizerSettings,
        model_dir: &Path,
    ) -> Result<Tokenizer> {
        if self == Self::Backend {
            return Ok(read);
        }
        let ModelWrapper::BPE(model) = read.get_model() else {
            return Err(self.needs_bpe(model_dir));
        };
        let mut tokenizer = Tokenizer::new(self.model(model.clone(), settings));
        self.prepare(&mut tokenizer, settings).map_err(|e| {
            Error::new(Kind::Malformed, "cannot set up this tokenizer")
                .source(e)
                .file(model_dir.join(TOKENIZER_FILE))
                .remedy(AS_THE_FILE_SAYS)
        })?;
        // This class makes its own, which adds no tokens if there is a tokenizer.json.
        if self != Self::GptNeoX {
            tokenizer.with_post_processor(read.get_post_processor().cloned());
        }
        Ok(tokenizer)
    }

    fn needs_bpe(self, model_dir: &Path) -> Error {
        let what = format!(
            "transformers makes a BPE tokenizer of this file ({self:?}), which holds another model"
        );
        Error::new(Kind::Unsupported, what)
            .file(model_dir.join(TOKENIZER_FILE))
            .remedy(AS_THE_FILE_SAYS)
    }

    /// Sets the class's normalizer and pre-tokenizer on `tokenizer`.
    fn prepare(
        self,
        tokenizer: &mut Tokenizer,
        settings: &TokenizerSettings,
    ) -> tokenizers::Result<()> {
        if let Some(normalizer) = self.normalizer()? {
            tokenizer.with_normalizer(Some(normalizer))?;
        }
        tokenizer.with_pre_tokenizer(Some(self.pre_tokenizer(settings)?));
        Ok(())
    }

    /// Returns `model` with the class's treatment of characters that aren't in the vocabulary.
    fn model(self, mut model: BPE, settings: &TokenizerSettings) -> BPE {
        model.dropout = None;
        model.ignore_merges = false;
        model.continuing_subword_prefix = None;
        model.end_of_word_suffix = None;
        model.fuse_unk = matches!(self, Self::Llama | Self::Gemma);
        model.byte_fallback = model.fuse_unk;
        let unknown = if self == Self::Gemma { settings.named("unk_token") } else { None };
        model.unk_token = unknown.map(str::to_owned);
        model
    }

    fn normalizer(self) -> tokenizers::Result<Option<NormalizerWrapper>> {
        Ok(match self {
            Self::Qwen2 | Self::Qwen3_5 | Self::GptNeoX | Self::Cohere => Some(NFC.into()),
            Self::Gemma => Some(Replace::new(" ", "▁")?.into()),
            Self::Backend | Self::Llama | Self::Gpt2 => None,
        })
    }

    fn pre_tokenizer(
        self,
        settings: &TokenizerSettings,
    ) -> tokenizers::Result<PreTokenizerWrapper> {
        let prefix = settings.config.get("add_prefix_space").and_then(Value::as_bool);
        let adds_space = prefix.unwrap_or(false);
        Ok(match self {
            Self::Llama => Metaspace::new('▁', prepended(prefix, settings), false).into(),
            Self::Qwen2 | Self::Qwen3_5 => {
                let pattern = if self == Self::Qwen2 { QWEN2 } else { QWEN3_5 };
                let pattern = SplitPattern::Regex(pattern.into());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                let bytes = ByteLevel::new(adds_space, true, false);
                Sequence::new(vec![split.into(), bytes.into()]).into()
            }
            Self::Cohere => {
                let bytes = ByteLevel::new(adds_space, true, true);
                Sequence::new(vec![Digits::new(true).into(), bytes.into()]).into()
            }
            Self::Gemma => {
                Split::new(" ", SplitDelimiterBehavior::MergedWithPrevious, false)?.into()
            }
            Self::Backend | Self::Gpt2 | Self::GptNeoX => {
                ByteLevel::new(adds_space, true, true).into()
            }
        })
    }

    /// Returns whether the class adds its special tokens a second time, as tokens that match
    /// anywhere.
    pub fn adds_specials_again(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Cohere)
    }

    /// Returns whether tokens that are added a second time keep the matching options of the file.
    pub fn keeps_matching(self, token: &SpecialToken) -> bool {
        self == Self::Cohere && matches!(token, SpecialToken::Added(_))
    }
}

const AS_THE_FILE_SAYS: &str = "set \"tokenizer_class\" to \"PreTrainedTokenizerFast\" in tokenizer_config.json, \
    which takes tokenizer.json as it is, or give token ids: JSONL lines with \"input_ids\"";

/// Adds the file that names the tokenizer class to `error`.
pub(super) fn in_config(error: Error, model_dir: &Path) -> Error {
    error.file(model_dir.join(TOKENIZER_CONFIG_FILE))
}
