//! Quantization turns experts into integers of a few bits or 8-bit floats, and calibrates each
//! expert on samples of its own.
//!
//! It uses GPTQ (2210.17323) with a Hessian for each expert, over the tokens that are routed to it
//! and, where these are too few, those that came closest. It goes layer by layer: a layer sees what
//! the quantized layers before it give, and `down` sees what the quantized gate and up give.

mod attention;
mod check;
mod encode;
mod failed;
mod gather;
mod matrices;
mod nearest;
mod options;
mod quantizer;
mod record;
mod samples;
mod scheme;
mod solve;
mod survey;
mod widths;

use std::collections::BTreeMap;

use moe_checkpoint::quantization::{QUANTIZATION_KEY, Scheme};
use moe_forward::DataSpec;
use moe_model::{Answer, Error, Expert, Ffn, Kind, Linear, Model, Moe, Packing, Result};
use serde_json::Value;

use crate::calibrate::CalibrationOptions;
use crate::pass::{
    DetailsType, Effect, Inputs, Kept, LayerEdits, LayerRecord, LayerSweep, Next, Pass, PassInfo,
    PassOptions, Plan, PlannedModel, Pool, ReportKind, Sources, Transform, as_value,
};

pub use options::{CalibrateOn, Format, Profile, QuantizeOptions, QuantizedPart, SolverChoice};
pub use record::QuantizedLayer;
pub use samples::Counts;
pub use scheme::WeightScheme;
pub use solve::{ExpertRecord, Fallback};
pub use widths::{LayerWidths, WidthError};

use crate::usage::usage;
use encode::Store;
use matrices::quantized_attention;
use quantizer::Quantizer;

/// The row of [`crate::PASSES`].
pub(crate) static INFO: PassInfo = PassInfo {
    name: "quantize",
    about: "Quantize experts, each calibrated on enough samples of its own, above all the rarely used ones",
    examples: "Examples:\n  \
        moe-convert quantize golden/models/moe -o target/w4 --per-expert --scheme w4a16 \\\n    \
        --data-tokens 4096 --data english=golden/text/english.calibration.txt \\\n    \
        --data code=golden/text/code.calibration.txt\n  \
        moe-convert quantize golden/models/moe -o target/w3 --scheme w3a16 --group-size 32 \\\n    \
        --data-tokens 4096 --data golden/text/english.calibration.txt \\\n    \
        --held-out golden/text/english.heldout.txt\n  \
        moe-convert quantize golden/models/moe -o target/fp8 --scheme fp8-block\n\n\
        docs/quantization.md is the guide.",
    options: PassOptions::of::<QuantizeOptions>(),
    least_options: "scheme = \"fp8-block\"",
    targets: |_| &[],
    benchmark: Some(|_| "scheme = \"w4a16\"\ngroup-size = 128".to_owned()),
    baseline: None,
    choice: None,
    details: Some(DetailsType::of::<QuantizedLayer>()),
    report: ReportKind::Quantized,
    healed_with: None,
    resumes_midway: false,
    decides_at_once: false,
    less_memory: "lower --data-tokens, --sequence-length, --held-out-tokens or --probe-tokens",
};

/// The warning for --clip-search where matrices may get 2 bits.
const CLIPPED: &str = "--clip-search costs at 2 bits: 18 to 30 % more KL where it was measured; leave it out, or compare both with --held-out";

impl Pass for QuantizeOptions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn options(&self) -> Value {
        as_value(&self.spelled_out())
    }

    fn inputs(&self) -> Inputs<'_> {
        let held_out = self.measuring.text(&self.calibration);
        let mut inputs = Inputs::of_text(&self.calibration.data, held_out);
        inputs.learned.extend(DataSpec::files(&self.pool));
        inputs
    }

    fn check_options(&self) -> Result<()> {
        self.check()?;
        self.quantization().map(drop)
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        self.check_options()?;
        self.check_model(sources.model)?;
        let next = match (self.solver(), self.target_bits) {
            (SolverChoice::Rtn, None) => {
                let options = self.clone();
                Next::Decide(Box::new(move |sources| nearest::rounded(&options, sources)))
            }
            _ => Next::Layers(self.sweep(sources.model, Quantizer::new(self, sources))),
        };
        Plan::new(self.clone(), sources, next)
    }
}

impl Transform for QuantizeOptions {
    fn apply(&self, sources: &Sources<'_>, edits: Option<&LayerEdits>) -> Result<PlannedModel> {
        let mut model = sources.model.clone();
        let mut layers = Vec::new();
        let target = self.target_bits.filter(|_| edits.is_none());
        let presumed = target.map(|target| self.presumed(sources.model, target)).transpose()?;
        for (index, moe) in sources.model.moes() {
            let decided = edits.and_then(|edits| edits.layers.get(&index));
            let (ffn, record) = match decided {
                Some(decided) => (decided.ffn.clone(), decided.record.clone()),
                None => {
                    let widths = presumed.as_ref().map(|layers| layers[&index].clone());
                    self.undecided(index, moe, widths)?
                }
            };
            model.layers[index].ffn = ffn;
            layers.push(record);
        }
        if self.include.contains(&QuantizedPart::Attention) {
            self.quantize_attention(&mut model, edits)?;
        }
        model.config.remove(QUANTIZATION_KEY);
        model.quantization = Some(self.quantization()?);
        let written = model.declare()?.reread()?;
        model.quantization.clone_from(&written.quantization);
        let effects = vec![self.effect(&layers)];
        let mut warnings: Vec<String> = model.caveats().map(str::to_owned).collect();
        warnings.extend(self.warnings(&written));
        Ok(PlannedModel::new(model, effects, layers, warnings))
    }
}

impl QuantizeOptions {
    /// Layer `index` before its codes are known: the shapes of its matrices, and its record.
    fn undecided(
        &self,
        index: usize,
        moe: &Moe,
        widths: Option<LayerWidths>,
    ) -> Result<(Ffn, LayerRecord)> {
        let schemes = self.schemes(widths.as_ref());
        let moe_shaped = self.quantized(moe, |_, matrix, weight| {
            self.encoded(weight, schemes[matrix], &Store(None), None)
        })?;
        let details = QuantizedLayer { bit_widths: widths, ..QuantizedLayer::default() };
        Ok((Ffn::Moe(Box::new(moe_shaped)), self.record(index, moe, details)))
    }

    /// Replaces the attention of each layer of `model` by what `edits` decided, or by its shapes.
    fn quantize_attention(&self, model: &mut Model, edits: Option<&LayerEdits>) -> Result<()> {
        for (index, layer) in model.layers.iter_mut().enumerate() {
            let decided = edits.and_then(|edits| edits.attention.get(&index));
            layer.attention = match decided {
                Some(decided) => decided.clone(),
                None => quantized_attention(&layer.attention, |weight| {
                    self.encoded(weight, self.encoding(), &Store(None), None)
                })?,
            };
        }
        Ok(())
    }

    /// The effect of rounding the weights of `layers`.
    fn effect(&self, layers: &[LayerRecord]) -> Effect {
        let why = format!("weights of {} are rounded: {}", self.parts(), self.said(layers));
        let option = if self.target_bits.is_some() { "target-bits" } else { "scheme" };
        Effect::new(option, Kept::Approximately, why)
    }

    /// Warnings of engines that don't take the model as it is `written`, and of options.
    fn warnings(&self, written: &Model) -> Vec<String> {
        let verdicts = written.engines().into_iter();
        let refusing = verdicts.filter(|verdict| verdict.answer != Answer::Takes);
        let mut warnings: Vec<String> = refusing.map(|verdict| verdict.to_string()).collect();
        if self.clips_two_bits() {
            warnings.push(CLIPPED.to_owned());
        }
        warnings
    }

    /// The sweep of `quantizer` over `model`, with the pool if there is one.
    fn sweep(&self, model: &Model, quantizer: Quantizer) -> LayerSweep {
        let widths = model.moes().map(|(_, moe)| moe.experts[0].width()).chain([model.hidden]);
        // An expert's own tokens are worth more than others': it should have enough to make a
        // Hessian regular.
        let least = self.least_of(model).max(widths.max().unwrap_or(0));
        let text = CalibrationOptions {
            data: self.pool.clone(),
            data_tokens: self.pool_tokens,
            ..self.calibration.clone()
        };
        let pool = Pool { text, least, most: self.pool_added_tokens };
        let pool = (!self.pool.is_empty()).then_some(pool);
        LayerSweep { pool, ..LayerSweep::new(&self.calibration, quantizer) }
    }

    /// The number of tokens that an expert of `model`'s widest layer needs.
    fn least_of(&self, model: &Model) -> usize {
        let widths = model.moes().map(|(_, moe)| moe.experts[0].width());
        self.least_tokens(model.hidden, widths.max().unwrap_or(0))
    }

    /// The parts that are quantized, in words.
    fn parts(&self) -> &'static str {
        match (
            self.include.contains(&QuantizedPart::Shared),
            self.include.contains(&QuantizedPart::Attention),
        ) {
            (false, false) => "routed experts",
            (true, false) => "routed and shared experts",
            (false, true) => "routed experts and attention",
            (true, true) => "routed and shared experts and attention",
        }
    }

    /// The schemes of gate, up and down of a layer.
    fn schemes(&self, widths: Option<&LayerWidths>) -> [Scheme; 3] {
        widths.map_or([self.encoding(); 3], |widths| self.of_widths(widths.bits))
    }

    /// The encodings of all layers, in a few words.
    fn said(&self, layers: &[LayerRecord]) -> String {
        let Some(target) = self.target_bits else { return self.encoding().to_string() };
        let widths: Vec<LayerWidths> = layers
            .iter()
            .filter_map(|layer| layer.details::<QuantizedLayer>()?.bit_widths)
            .collect();
        let mut count: BTreeMap<u32, usize> = BTreeMap::new();
        for bits in widths
            .iter()
            .flat_map(|widths| self.profile.parts().iter().map(|part| widths.bits[part[0]]))
        {
            *count.entry(bits).or_default() += 1;
        }
        let shares: Vec<_> =
            count.iter().map(|(bits, count)| format!("{bits} bits in {count}")).collect();
        let all = count.values().sum::<usize>();
        let shares = shares.join(", ");
        let places =
            if self.profile == Profile::Engine { "layers" } else { "projections of layers" };
        let reached = LayerWidths::bits_a_weight(widths.iter());
        format!(
            "integers of {shares} of {all} {places}; {reached:.4} bits a weight, {target} asked for"
        )
    }

    /// Refuses models and shapes that can't be quantized with these options.
    fn check_model(&self, model: &Model) -> Result<()> {
        if let Some(quantization) = &model.quantization {
            let what = format!("this checkpoint is quantized already: {quantization}");
            return Err(Error::new(Kind::Unsupported, what)
                .file(&model.config_file)
                .remedy("start from the unquantized checkpoint"));
        }
        if model.moes().next().is_none() {
            return Err(Error::new(Kind::Usage, "this model has no mixture of experts")
                .file(&model.config_file)
                .remedy("give an MoE; upcycle makes one of a dense model"));
        }
        if self.include.contains(&QuantizedPart::Shared)
            && model.moes().all(|(_, moe)| moe.shared.is_none())
        {
            return Err(usage(
                &["--include"],
                "this model has no shared experts",
                "leave --include shared out",
            )
            .file(&model.config_file));
        }
        self.linears(model).try_for_each(|linear| self.check_matrix(linear))
    }

    /// The projections of `model` that are quantized: those of attention, then those of experts.
    fn linears<'m>(&self, model: &'m Model) -> impl Iterator<Item = &'m Linear> {
        let has_attention = self.include.contains(&QuantizedPart::Attention);
        let layers = model.layers.iter().filter(move |_| has_attention);
        let attention = layers.flat_map(|layer| layer.attention.linears());
        let networks = model.moes().flat_map(|(_, moe)| self.networks(moe));
        attention.chain(networks.flat_map(Expert::linears))
    }

    fn check_matrix(&self, linear: &Linear) -> Result<()> {
        moe_forward::candle_dtype(&linear.weight)?;
        if self.is_float() {
            return Ok(());
        }
        let [rows, columns] = [linear.weight.shape()[0], linear.weight.shape()[1]];
        if let Some(group) = self.group().filter(|group| !columns.is_multiple_of(*group)) {
            let what =
                format!("groups of {group} don't divide the {columns} columns of this matrix");
            return Err(usage(&["--group-size"], what, group_size_remedy(columns))
                .tensor(linear.weight.name()));
        }
        if self.packing() == Packing::Columns
            && !(rows.is_multiple_of(32) && columns.is_multiple_of(32))
        {
            let what = format!("GPTQ packs 32 rows and columns at a time, not {rows} × {columns}");
            return Err(Error::new(Kind::Unsupported, what)
                .tensor(linear.weight.name())
                .remedy("give --format compressed-tensors"));
        }
        Ok(())
    }
}

/// The remedy where a group size doesn't divide the `columns` of a matrix.
fn group_size_remedy(columns: usize) -> String {
    let fitting = [128, 64, 32].into_iter().filter(|size| columns.is_multiple_of(*size));
    let fitting: Vec<_> = fitting.map(|size| size.to_string()).collect();
    if fitting.is_empty() {
        return "give --group-size -1, a scale for each row".to_owned();
    }
    format!("give --group-size {} (or -1 for whole rows)", fitting.join(" or "))
}
