//! Files of additive statistics: `observe` writes them, and passes read them instead of data.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::json::{self, UniqueKeys};
use moe_checkpoint::{
    Dtype, Entry, Error, Kind, Result, SourceFile, StagedFile, Stored, encode_header,
};
use moe_forward::Group;
use moe_math::statistics::{CalibrationSums, MixtureSizes, Quantity};
use moe_model::Model;
use moe_passes::LayerStatistics;
use serde::{Deserialize, Serialize};

use crate::filling::{Failure, Unfilled};
use crate::fingerprint::Fingerprint;

/// The tensor that holds [`About`] as JSON.
const ABOUT: &str = "about";
const FORMAT: &str = "moe-convert statistics 1";
const REMEDY: &str = "give a file that moe-convert observe has written";

/// The description of a file of statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct About {
    /// Name and version of the format.
    pub format: String,
    /// The model and its tokenizer.
    #[serde(flatten)]
    pub fingerprint: Fingerprint,
    /// The groups of tokens, the first dimension of every tensor.
    pub groups: Vec<Group>,
    /// Sizes of the layers that have a mixture of experts.
    pub layers: BTreeMap<usize, MixtureSizes>,
    /// Hash of the options and of all that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// SHA-256 of the text that they were gathered on, by name; empty where earlier builds wrote
    /// the file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, String>,
}

/// Adds the text `name` with its `hash` to `texts`, under another name if that is taken by another
/// text.
pub(crate) fn add_text(texts: &mut BTreeMap<String, String>, name: &str, hash: &str) {
    let numbered = (2..).map(|number| format!("{name} ({number})"));
    let free = std::iter::once(name.to_owned())
        .chain(numbered)
        .find(|name| texts.get(name).is_none_or(|at| at == hash));
    texts.extend(free.map(|name| (name, hash.to_owned())));
}

impl About {
    /// Describes statistics of a model that was observed in the run of this hash on these texts.
    pub fn new(
        fingerprint: Fingerprint,
        groups: Vec<Group>,
        layers: BTreeMap<usize, MixtureSizes>,
        run: Option<String>,
        texts: BTreeMap<String, String>,
    ) -> Self {
        Self { format: FORMAT.to_owned(), fingerprint, groups, layers, run, texts }
    }
}

/// Above this number of tokens, sums in f64 lose counts.
const MAX_TOKENS: u64 = 1 << 53;

impl About {
    /// Refuses contents that no run writes; the error says which.
    fn check(&self) -> Result<(), &'static str> {
        let groups = || self.groups.iter();
        let tokens = groups().try_fold(0u64, |sum, group| sum.checked_add(group.tokens));
        let positive = |sizes: &MixtureSizes| {
            [sizes.experts, sizes.hidden, sizes.width].iter().all(|size| *size > 0)
        };
        match () {
            () if self.groups.is_empty() => Err("statistics of no group of tokens"),
            () if groups().any(|group| group.half > 1) => {
                Err("statistics of more than two halves of a domain")
            }
            () if groups().filter_map(|group| group.weight).any(|weight| weight <= 0.0) => {
                Err("statistics of a domain whose weight is not positive")
            }
            () if tokens.is_none_or(|tokens| tokens > MAX_TOKENS) => {
                Err("statistics of more than 2^53 tokens")
            }
            () if !self.layers.values().all(positive) => {
                Err("statistics of a layer without experts, neurons or states")
            }
            () => Ok(()),
        }
    }
}

/// An open file of statistics; a layer is read when it is asked for.
pub struct StatisticsFile {
    path: PathBuf,
    about: About,
    tensors: BTreeMap<String, Stored>,
}

impl StatisticsFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Kind::Missing`] and [`Kind::Malformed`], naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::new(Kind::Missing, "no such file of statistics")
                .file(path)
                .remedy(REMEDY));
        }
        let malformed = |what: String| Error::new(Kind::Malformed, what).file(path).remedy(REMEDY);
        let (file, entries) = SourceFile::open(path)
            .map_err(|e| malformed(format!("this is not a file of statistics: {}", e.said())))?;
        let tensors: BTreeMap<String, Stored> = entries
            .into_iter()
            .map(|entry| (entry.name.clone(), Stored::of_file(&file, entry)))
            .collect();
        let about =
            tensors.get(ABOUT).ok_or_else(|| malformed("this file holds no statistics".into()))?;
        let mut json = vec![0; about.bytes() as usize];
        about.read_at(0, &mut json)?;
        json::parsed::<UniqueKeys>(&json).map_err(malformed)?;
        let about: About = json::parsed(&json).map_err(malformed)?;
        if about.format != FORMAT {
            return Err(malformed(format!("this is {:?}, not {FORMAT:?}", about.format)));
        }
        let file = Self { path: path.to_owned(), about, tensors };
        file.check()?;
        Ok(file)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The description of the model and text that the statistics are of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Refuses statistics of another model or tokenizer than those of `model`, which lies in `dir`
    /// and has the fingerprint `found`.
    ///
    /// # Errors
    /// [`Kind::Mismatch`].
    pub fn check_model(&self, model: &Model, found: &Fingerprint, dir: &Path) -> Result<()> {
        let of = &self.about.fingerprint;
        let what = match (of.model == found.model, of.tokenizer == found.tokenizer) {
            // Fingerprints can collide: sums of other sizes would be taken for those of this
            // model's layers.
            (true, true)
                if self
                    .about
                    .layers
                    .iter()
                    .all(|(index, sizes)| sizes_of(model, *index) == Some(*sizes)) =>
            {
                return Ok(());
            }
            (true, false) => "these statistics are of this model with another tokenizer",
            (_, _) => "these statistics are of another model",
        };
        Err(Error::new(Kind::Mismatch, format!("{what} than {}", dir.display()))
            .file(&self.path)
            .remedy("observe this model, or give the one that was observed"))
    }

    /// Checks that every tensor exists in its shape, so that reading can't fail for that later.
    fn check(&self) -> Result<()> {
        self.about
            .check()
            .map_err(|what| Error::new(Kind::Malformed, what).file(&self.path).remedy(REMEDY))?;
        for (layer, sizes) in &self.about.layers {
            for quantity in Quantity::ALL {
                let name = tensor_name(*layer, quantity);
                let shape = shape(self.about.groups.len(), quantity, *sizes);
                let found = self.tensors.get(&name);
                if found.is_none_or(|t| t.shape() != shape || t.dtype() != Dtype::F64) {
                    return Err(Error::new(
                        Kind::Malformed,
                        format!("statistics without f64 values of shape {shape:?}"),
                    )
                    .file(&self.path)
                    .tensor(&name)
                    .remedy(REMEDY));
                }
            }
        }
        Ok(())
    }
}

impl StatisticsFile {
    /// Refuses `values` of `quantity`, read from `tensor`, that no observation gives.
    fn check_values(&self, tensor: &Stored, quantity: Quantity, values: &[f64]) -> Result<()> {
        let wrong = if values.iter().any(|value| !value.is_finite()) {
            "is not finite"
        } else if quantity.is_never_negative() && values.iter().any(|value| *value < 0.0) {
            "is negative"
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Numeric, format!("a statistic {wrong}"))
            .file(&self.path)
            .tensor(tensor.name())
            .remedy("observe the model again"))
    }
}

impl LayerStatistics for StatisticsFile {
    fn groups(&self) -> &[Group] {
        &self.about.groups
    }

    fn layer(&self, index: usize) -> Result<Option<Vec<CalibrationSums>>> {
        let Some(sizes) = self.about.layers.get(&index) else { return Ok(None) };
        let mut sums = vec![CalibrationSums::new(*sizes); self.about.groups.len()];
        for quantity in Quantity::ALL {
            let tensor = &self.tensors[&tensor_name(index, quantity)];
            let mut values = vec![0f64; tensor.bytes() as usize / 8];
            tensor.read_at(0, bytemuck::cast_slice_mut(&mut values))?;
            self.check_values(tensor, quantity, &values)?;
            let each = values.len() / sums.len();
            for (sums, values) in sums.iter_mut().zip(values.chunks_exact(each)) {
                sums.get_mut(quantity).copy_from_slice(values);
            }
        }
        Ok(Some(sums))
    }
}

/// The sizes of layer `index`; None if it has no experts.
fn sizes_of(model: &Model, index: usize) -> Option<MixtureSizes> {
    let moe = model.layers.get(index)?.ffn.moe()?;
    Some(MixtureSizes {
        experts: moe.experts.len(),
        hidden: model.hidden,
        width: moe.experts[0].width(),
    })
}

fn tensor_name(layer: usize, quantity: Quantity) -> String {
    format!("layers.{layer}.{}", quantity.name())
}

fn shape(groups: usize, quantity: Quantity, sizes: MixtureSizes) -> Vec<usize> {
    std::iter::once(groups).chain(quantity.shape(sizes)).collect()
}

/// Writes `file`, asking `layer` for one layer's sums at a time.
///
/// # Errors
/// Errors of `layer`; [`Kind::Io`] where writing fails. No new file is left then.
pub(crate) fn write(
    file: StagedFile,
    about: &About,
    layer: impl FnMut(usize) -> Result<Arc<Vec<CalibrationSums>>>,
) -> Result<()> {
    let mut failure = Failure::default();
    let written = file.commit(|file| failure.keep(fill(&mut BufWriter::new(file), about, layer)));
    failure.instead_of(written).map(drop)
}

/// Writes the header, `about`, and all sums.
fn fill(
    out: &mut impl Write,
    about: &About,
    mut layer: impl FnMut(usize) -> Result<Arc<Vec<CalibrationSums>>>,
) -> Result<(), Unfilled> {
    let mut json = serde_json::to_vec(about).unwrap_or_default();
    // Padding aligns the data after it.
    json.resize(json.len().next_multiple_of(8), b' ');
    out.write_all(&encode_header(&entries(about, json.len())))?;
    out.write_all(&json)?;
    for index in about.layers.keys() {
        let sums = layer(*index)?;
        for quantity in Quantity::ALL {
            for group in sums.iter() {
                out.write_all(bytemuck::cast_slice(group.get(quantity)))?;
            }
        }
    }
    Ok(out.flush()?)
}

/// The entries of a file with `about`, whose JSON takes `json_bytes`.
fn entries(about: &About, json_bytes: usize) -> Vec<Entry> {
    let mut end = json_bytes as u64;
    let mut entries = vec![Entry {
        name: ABOUT.to_owned(),
        dtype: Dtype::U8,
        shape: vec![json_bytes],
        start: 0,
        end,
    }];
    for (layer, sizes) in &about.layers {
        for quantity in Quantity::ALL {
            let shape = shape(about.groups.len(), quantity, *sizes);
            let start = end;
            end += shape.iter().product::<usize>() as u64 * 8;
            let name = tensor_name(*layer, quantity);
            entries.push(Entry { name, dtype: Dtype::F64, shape, start, end });
        }
    }
    entries
}
