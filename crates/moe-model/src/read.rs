//! From names to layers: a checkpoint read through its family.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Quantization, Stored};
use serde_json::{Map, Value};

use crate::assembly::{Head, Model};
use crate::base_config::has_layers_of_their_own;
use crate::codec::names::is_computed;
use crate::codec::{Config, Reader, names};
use crate::family::{Family, family};
use crate::shape::{Heads, Shape};
use crate::weight::Weight;
use crate::{Error, Kind, Result, decoder_layer, mtp};

impl Model {
    /// Opens the checkpoint directory `dir`.
    ///
    /// # Errors
    /// What [`Checkpoint::open`] and [`Model::read`] return.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::read(&Checkpoint::open(dir)?)
    }

    /// Understands an open checkpoint. Reads no weights.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for an architecture, option or encoding this program doesn't know;
    /// [`Kind::Missing`] and [`Kind::Mismatch`] where tensors don't fit the config; all name tensor
    /// and file.
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

    /// Builds a model from a config and named weights; `file` stands for the config in messages.
    ///
    /// # Errors
    /// As for [`Model::read`].
    pub fn assemble(
        raw: Map<String, Value>,
        file: &Path,
        tensors: BTreeMap<String, Weight>,
    ) -> Result<Self> {
        let family = family_of(&raw, file)?;
        // `verify` refuses what transformers 5 does for its type alone; a pass writes it as what it
        // means.
        let mut meant = family.strict.meant(&raw);
        // A list of one number is that number for tokens alone, which nothing here reads.
        meant.extend(
            raw.iter()
                .filter(|(_, value)| value.is_array())
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let config = Config { raw: &meant, family, file };
        check_options(config)?;
        let quantization = Quantization::read(&raw, file)?;
        let mut reader = Reader { config, tensors, quantization };
        let shape = Shape::read(config)?;
        // Every layer has tensors, so a larger count is nonsense; it is refused before anything is
        // sized by it.
        let layers = config.positive("num_hidden_layers")?;
        if layers > reader.tensors.len() {
            let what = format!("is {layers}, but there are only {} tensors", reader.tensors.len());
            return Err(config.error("num_hidden_layers", &what));
        }
        let windows = family.attention.window.decode(&config, layers)?;
        let tied = config.bool("tie_word_embeddings")?;
        let embed = read_embedding(&mut reader, tied, &shape)?;
        let mtp = mtp::read(&mut reader, layers, &shape)?;
        let layers = (0..layers)
            .map(|layer| decoder_layer::read(&mut reader, layer, &shape, windows[layer]))
            .collect::<Result<Vec<_>>>()?;
        let final_norm = reader.take(names::FINAL_NORM, &[shape.hidden])?;
        // transformers 5 keeps a head that a tied checkpoint holds all the same.
        let head = match tied && !reader.tensors.contains_key(names::HEAD) {
            true => Head::Tied,
            false => Head::Own(reader.take(names::HEAD, &[shape.vocab, shape.hidden])?),
        };
        let rope = shape.heads.rope(config)?;
        let norm_eps = config.optional_f64("rms_norm_eps")?.filter(|eps| *eps >= 0.0);
        let norm_eps =
            norm_eps.ok_or_else(|| config.error("rms_norm_eps", "is null or negative"))?;
        let quantization = reader.quantization.clone();
        let extra = rest(reader)?;
        let Shape { hidden, vocab, heads: Heads { heads, kv_heads, head_dim } } = shape;
        let config_file = file.to_owned();
        Ok(Self {
            family,
            config: raw,
            config_file,
            hidden,
            vocab,
            heads,
            kv_heads,
            head_dim,
            norm_eps,
            rope,
            embed,
            layers,
            mtp,
            final_norm,
            head,
            quantization,
            extra,
        })
    }
}

/// An error about `stored`, which is there under another name, too.
fn twice(what: String, stored: &Stored) -> Error {
    Error::new(Kind::Mismatch, what)
        .tensor(stored.name())
        .file(stored.path())
        .remedy("remove the one that isn't meant")
}

/// The name that transformers 5 gives the tensor `name` of `checkpoint`, where it is another one:
/// `model.` is added where it is missing, as in a model without a head that AutoModel saved, and
/// taken off where it stands before a whole name. None where both are there.
pub fn loaded_name(name: &str, checkpoint: &Checkpoint) -> Option<String> {
    let loaded = match name.strip_prefix(names::MODEL) {
        Some(whole) if whole == names::HEAD || whole.starts_with(names::MODEL) => whole.to_owned(),
        Some(_) => return None,
        None => is_of_layers(name).then(|| names::MODEL.to_owned() + name)?,
    };
    (!checkpoint.tensors().contains_key(&loaded)).then_some(loaded)
}

/// Whether a name without `model.` is one of an embedding, a layer or the final norm.
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

/// Refuses by name what would silently change the function.
fn check_options(config: Config<'_>) -> Result<()> {
    for (key, values) in &config.family.only {
        if let Some(value) = config.raw.get(key).filter(|v| !v.is_null() && !values.contains(v)) {
            let supported = values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
            let remedy = match config.family.only_ignored.contains(key) {
                true => format!(
                    "transformers ignores this key and computes as for {supported}: if that is what the weights were trained \
                     for, remove the key"
                ),
                false => format!("supported: {supported}"),
            };
            return Err(Error::new(Kind::Unsupported, format!("{key} {value} is not supported"))
                .file(config.file)
                .remedy(remedy));
        }
    }
    if has_layers_of_their_own(config.raw) {
        return Err(Error::new(
            Kind::Unsupported,
            "per_layer_config with keys that differ between layers is not supported",
        )
        .file(config.file)
        .remedy("supported: layers that are alike, without per_layer_config"));
    }
    match config.get("hidden_act").and_then(Value::as_str) {
        Some("silu" | "swish") => Ok(()),
        _ => {
            let said = config
                .get("hidden_act")
                .map_or_else(|| "missing".to_owned(), moe_checkpoint::json::shown);
            Err(Error::new(Kind::Unsupported, format!("hidden_act {said} is not supported"))
                .file(config.file)
                .remedy("supported: silu"))
        }
    }
}

/// A tied checkpoint may hold the matrix under the head's name only.
fn read_embedding(reader: &mut Reader<'_>, tied: bool, shape: &Shape) -> Result<Weight> {
    let only_head = tied
        && !reader.tensors.contains_key(names::EMBED)
        && reader.tensors.contains_key(names::HEAD);
    if !only_head && !reader.tensors.contains_key(names::EMBED) {
        return Err(other_names(reader));
    }
    reader.take(if only_head { names::HEAD } else { names::EMBED }, &[shape.vocab, shape.hidden])
}

/// Without an embedding: either it is missing, or all tensors have names that no loader
/// expects.
fn other_names(reader: &Reader<'_>) -> Error {
    let bare = names::EMBED.strip_prefix(names::MODEL).expect("it starts so");
    let seen = reader.tensors.keys().find_map(|name| {
        let whole = name.strip_suffix(names::EMBED).filter(|prefix| prefix.ends_with('.'));
        let prefix = whole.or_else(|| name.strip_suffix(bare))?;
        // A layer for multi-token prediction can have a table of its own.
        (prefix.ends_with('.') && !prefix.starts_with(names::LAYERS)).then_some((name, prefix))
    });
    let Some((name, prefix)) = seen else {
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
    let saved = match prefix {
        "module." => {
            "it was saved out of a DataParallel or DeepSpeed wrapper: save model.module instead"
        }
        "_orig_mod." => "it was saved out of torch.compile: save model._orig_mod instead",
        "base_model.model." => {
            "it was saved out of PEFT: save what merge_and_unload returns instead"
        }
        _ => "save the language model inside of it instead",
    };
    Error::new(Kind::Unsupported, what).tensor(names::EMBED).file(reader.config.file).remedy(format!(
        "{saved}; or take {prefix:?} out of all names, in the index too: with safetensors.torch, \
         save_file({{k.removeprefix({prefix:?}): v for k, v in load_file(F).items()}}, F, {{\"format\": \"pt\"}})"
    ))
}

/// What nobody took: carried, unless it lies in a layer, where it would mean something.
fn rest(reader: Reader<'_>) -> Result<BTreeMap<String, Weight>> {
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
