//! Reads a checkpoint through its family: named tensors become layers.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Quantization, Stored};
use serde_json::{Map, Value};

use crate::assembly::{Model, OutputHead};
use crate::base_config::has_layers_of_their_own;
use crate::codec::names::is_computed;
use crate::codec::{Config, TensorReader, names};
use crate::family::{Family, family};
use crate::layer::Layer;
use crate::shape::ModelShape;
use crate::weight::Weight;
use crate::{Error, Kind, Result, decoder_layer, mtp};

impl Model {
    /// Opens the checkpoint directory `dir`.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`] and [`Model::read`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::read(&Checkpoint::open(dir)?)
    }

    /// Reads the config and the tensors' names and shapes of an open checkpoint, but no weights.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for an architecture, option or encoding that this program doesn't
    /// know; [`Kind::Missing`] and [`Kind::Mismatch`] if tensors don't fit the config. All name the
    /// tensor and the file.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, stored) in checkpoint.tensors() {
            let loaded = loaded_name(name, checkpoint).unwrap_or_else(|| name.clone());
            if is_of_layers(name) && loaded == *name {
                let what = format!(
                    "this tensor is there as {MODEL}{name}, too: transformers 5 reads the one without {MODEL:?}, older versions \
                     the other",
                    MODEL = names::MODEL
                );
                return Err(twice(what, stored));
            }
            if tensors.contains_key(&loaded) {
                return Err(twice(format!("another tensor is loaded as {loaded}, too"), stored));
            }
            tensors.insert(loaded, Weight::from(stored.clone()));
        }
        Self::assemble(checkpoint.config().clone(), &checkpoint.dir().join(CONFIG_FILE), tensors)
    }

    /// Builds a model from a config and named weights; `file` is the config's path in messages.
    ///
    /// # Errors
    /// As for [`Model::read`].
    pub fn assemble(
        raw: Map<String, Value>,
        file: &Path,
        tensors: BTreeMap<String, Weight>,
    ) -> Result<Self> {
        let family = family_of(&raw, file)?;
        let meant = meant(family, &raw);
        let config = Config { raw: &meant, family, file };
        check_options(config)?;
        let quantization = Quantization::read(&raw, file)?;
        Self::from_tensors(TensorReader { config, tensors, quantization }, family, raw)
    }

    /// Takes the tensors of the model that `raw` describes out of the reader. The tensors left over
    /// are for [`rest`].
    fn from_tensors(
        mut reader: TensorReader<'_>,
        family: &'static Family,
        raw: Map<String, Value>,
    ) -> Result<Self> {
        let config = reader.config;
        let shape = ModelShape::read(config)?;
        let layers = count_layers(config, reader.tensors.len())?;
        let windows = family.attention.window.decode(&config, layers)?;
        let tied = config.bool("tie_word_embeddings")?;
        // Rust evaluates fields in this order, so it decides which of several errors is reported.
        Ok(Self {
            family,
            config: raw,
            config_file: config.file.to_owned(),
            hidden: shape.hidden,
            vocab: shape.vocab,
            heads: shape.heads.heads,
            kv_heads: shape.heads.kv_heads,
            head_dim: shape.heads.head_dim,
            embed: read_embedding(&mut reader, tied, &shape)?,
            mtp: mtp::read(&mut reader, layers, &shape)?,
            layers: read_layers(&mut reader, &windows, &shape)?,
            final_norm: reader.take(names::FINAL_NORM, &[shape.hidden])?,
            head: read_head(&mut reader, tied, &shape)?,
            rope: shape.heads.rope(config)?,
            norm_eps: norm_eps(config)?,
            quantization: reader.quantization.clone(),
            extra: rest(reader)?,
        })
    }
}

/// Returns `raw` with values of other types converted to what they mean. `verify` reports values
/// that transformers 5 refuses only for their type; passes convert them.
fn meant(family: &Family, raw: &Map<String, Value>) -> Map<String, Value> {
    let mut meant = family.strict.meant(raw);
    // A list of one number means that number, but only for tokens, which nothing here reads.
    let lists = raw.iter().filter(|(_, value)| value.is_array());
    meant.extend(lists.map(|(key, value)| (key.clone(), value.clone())));
    meant
}

/// Reads the number of layers, which can't exceed the number of `tensors`.
fn count_layers(config: Config<'_>, tensors: usize) -> Result<usize> {
    let layers = config.positive("num_hidden_layers")?;
    // Every layer has tensors, so a larger count is nonsense; it is refused before anything is
    // sized by it.
    if layers > tensors {
        let what = format!("is {layers}, but there are only {tensors} tensors");
        return Err(config.error("num_hidden_layers", &what));
    }
    Ok(layers)
}

/// Reads the decoder layers, each with its sliding window.
fn read_layers(
    reader: &mut TensorReader<'_>,
    windows: &[Option<usize>],
    shape: &ModelShape,
) -> Result<Vec<Layer>> {
    let layers = windows.iter().enumerate();
    layers.map(|(layer, window)| decoder_layer::read(reader, layer, shape, *window)).collect()
}

fn read_head(reader: &mut TensorReader<'_>, tied: bool, shape: &ModelShape) -> Result<OutputHead> {
    // transformers 5 keeps the head of a tied checkpoint that holds one nevertheless.
    if tied && !reader.tensors.contains_key(names::HEAD) {
        return Ok(OutputHead::Tied);
    }
    Ok(OutputHead::Own(reader.take(names::HEAD, &[shape.vocab, shape.hidden])?))
}

/// Reads ε of the RMS norms.
fn norm_eps(config: Config<'_>) -> Result<f64> {
    let norm_eps = config.optional_f64("rms_norm_eps")?.filter(|eps| *eps >= 0.0);
    norm_eps.ok_or_else(|| config.error("rms_norm_eps", "is null or negative"))
}

/// Returns the error for the tensor `stored` if it also exists under another name.
fn twice(what: String, stored: &Stored) -> Error {
    Error::new(Kind::Mismatch, what)
        .tensor(stored.name())
        .file(stored.path())
        .remedy("remove the one that isn't meant")
}

/// Returns the name under which transformers 5 loads the tensor `name` of `checkpoint`, if that is
/// another one: `model.` is added if it is missing, as in a model without a head that AutoModel
/// saved, and removed if it precedes a complete name. None if both names exist.
pub fn loaded_name(name: &str, checkpoint: &Checkpoint) -> Option<String> {
    let loaded = match name.strip_prefix(names::MODEL) {
        Some(whole) if whole == names::HEAD || whole.starts_with(names::MODEL) => whole.to_owned(),
        Some(_) => return None,
        None => is_of_layers(name).then(|| names::MODEL.to_owned() + name)?,
    };
    (!checkpoint.tensors().contains_key(&loaded)).then_some(loaded)
}

/// Whether `name`, without `model.`, is that of an embedding, a layer's tensor or the final norm.
fn is_of_layers(name: &str) -> bool {
    ["embed_tokens.", "layers.", "norm."].iter().any(|start| name.starts_with(start))
}

fn family_of(raw: &Map<String, Value>, file: &Path) -> Result<&'static Family> {
    let model_type = raw.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        Error::new(Kind::Malformed, "config.json has no model_type")
            .file(file)
            .remedy("is this a language model?")
    })?;
    family(model_type).map_err(|e| e.file(file))
}

/// Refuses options that would silently change what the model computes; the error names them.
fn check_options(config: Config<'_>) -> Result<()> {
    for (key, values) in &config.family.only {
        if let Some(value) = config.raw.get(key).filter(|v| !v.is_null() && !values.contains(v)) {
            return Err(other_value(config, key, value));
        }
    }
    if has_layers_of_their_own(config.raw) {
        let what = "per_layer_config with keys that differ between layers is not supported";
        let remedy = "supported: layers that are alike, without per_layer_config";
        return Err(Error::new(Kind::Unsupported, what).file(config.file).remedy(remedy));
    }
    check_activation(config)
}

/// Returns the error for a `value` of `key` that the family's models can't have.
fn other_value(config: Config<'_>, key: &str, value: &Value) -> Error {
    let values = &config.family.only[key];
    let supported = values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
    let remedy = if config.family.only_ignored.iter().any(|ignored| ignored == key) {
        format!(
            "transformers ignores this key and computes as for {supported}: if that is what the weights were trained \
             for, remove the key"
        )
    } else {
        format!("supported: {supported}")
    };
    Error::new(Kind::Unsupported, format!("{key} {value} is not supported"))
        .file(config.file)
        .remedy(remedy)
}

/// Refuses activations other than SiLU.
fn check_activation(config: Config<'_>) -> Result<()> {
    let activation = config.get("hidden_act");
    if matches!(activation.and_then(Value::as_str), Some("silu" | "swish")) {
        return Ok(());
    }
    let said = activation.map_or_else(|| "missing".to_owned(), moe_checkpoint::json::shown);
    Err(Error::new(Kind::Unsupported, format!("hidden_act {said} is not supported"))
        .file(config.file)
        .remedy("supported: silu"))
}

/// Takes the embedding. A tied checkpoint may hold the matrix only under the head's name.
fn read_embedding(reader: &mut TensorReader<'_>, tied: bool, shape: &ModelShape) -> Result<Weight> {
    let only_head = tied
        && !reader.tensors.contains_key(names::EMBED)
        && reader.tensors.contains_key(names::HEAD);
    if !only_head && !reader.tensors.contains_key(names::EMBED) {
        return Err(other_names(reader));
    }
    reader.take(if only_head { names::HEAD } else { names::EMBED }, &[shape.vocab, shape.hidden])
}

/// Returns the error for a missing embedding: only the embedding is missing, or all tensors have
/// names that no loader expects.
fn other_names(reader: &TensorReader<'_>) -> Error {
    let Some((name, prefix)) = prefixed_embedding(reader) else {
        let first: Vec<&str> = reader.tensors.keys().take(3).map(String::as_str).collect();
        let what = format!(
            "a tensor that the config calls for is missing; what is there begins with {}",
            first.join(", ")
        );
        return Error::new(Kind::Missing, what)
            .tensor(names::EMBED)
            .file(reader.config.file)
            .remedy("the checkpoint is incomplete, or config.json is of another model");
    };
    let what = format!(
        "names of tensors have {prefix:?} in front, as in {name}: loaders find none of them and start at random"
    );
    Error::new(Kind::Unsupported, what).tensor(names::EMBED).file(reader.config.file).remedy(format!(
        "{saved}; or take {prefix:?} out of all names, in the index too: with safetensors.torch, \
         save_file({{k.removeprefix({prefix:?}): v for k, v in load_file(F).items()}}, F, {{\"format\": \"pt\"}})",
        saved = saved_from(prefix)
    ))
}

/// Finds an embedding with a prefix before its usual name; returns its name and the prefix.
fn prefixed_embedding<'a>(reader: &'a TensorReader<'_>) -> Option<(&'a str, &'a str)> {
    let bare = names::EMBED.strip_prefix(names::MODEL).expect("it starts so");
    reader.tensors.keys().find_map(|name| {
        let whole = name.strip_suffix(names::EMBED).filter(|prefix| prefix.ends_with('.'));
        let prefix = whole.or_else(|| name.strip_suffix(bare))?;
        // A layer for multi-token prediction can have a table of its own.
        let is_prefix = prefix.ends_with('.') && !prefix.starts_with(names::LAYERS);
        is_prefix.then_some((name.as_str(), prefix))
    })
}

/// Says what a checkpoint whose names begin with `prefix` was saved from, and what to save instead.
fn saved_from(prefix: &str) -> &'static str {
    match prefix {
        "module." => {
            "it was saved out of a DataParallel or DeepSpeed wrapper: save model.module instead"
        }
        "_orig_mod." => "it was saved out of torch.compile: save model._orig_mod instead",
        "base_model.model." => {
            "it was saved out of PEFT: save what merge_and_unload returns instead"
        }
        _ => "save the language model inside of it instead",
    }
}

/// Returns the tensors that were not taken, which are carried. Refuses those in a layer, since a
/// loader would use them.
fn rest(reader: TensorReader<'_>) -> Result<BTreeMap<String, Weight>> {
    let mut rest = reader.tensors;
    rest.retain(|name, _| !is_computed(name));
    match rest.iter().find(|(name, _)| name.starts_with(names::LAYERS)) {
        None => Ok(rest),
        Some((name, weight)) => Err(Error::new(
            Kind::Unsupported,
            format!(
                "a {} model with this config has no such tensor",
                reader.config.family.model_type
            ),
        )
        .tensor(name)
        .file(weight.stored().map_or(reader.config.file, |s| s.path()))
        .remedy("config.json is of another model, or of a variant that is not supported")),
    }
}
