//! Layers for multi-token prediction. No sweep goes through them, so their experts are ranked by
//! weights.

use moe_forward::to_f32;
use moe_math::Compute;
use moe_math::saliency;
use moe_model::{Error, Expert, Ffn, Kind, Model, Moe, Result};

use super::{MtpChoice, ReduceOptions, Reduced, Size, check_saliency, most_salient};
use crate::pass::{Effect, Kept, LayerEdits, LayerRecord};

impl ReduceOptions {
    /// Decides the layers for multi-token prediction of `model`, unless they are left out.
    ///
    /// # Errors
    /// If a weight can't be read.
    pub(crate) fn decide_mtp(
        &self,
        model: &Model,
        size: &Size,
        compute: &Compute,
        decisions: &mut LayerEdits,
    ) -> Result<()> {
        match self.mtp {
            MtpChoice::Prune => decide_mtp(model, size, compute, decisions),
            MtpChoice::Drop => Ok(()),
        }
    }
}

/// Decides the layers for multi-token prediction of `model`, numbered after the others.
fn decide_mtp(
    model: &Model,
    size: &Size,
    compute: &Compute,
    decisions: &mut LayerEdits,
) -> Result<()> {
    for (index, mtp) in model.mtp.iter().enumerate() {
        let Some(moe) = mtp.layer.ffn.moe() else { continue };
        let index = model.layers.len() + index;
        let saliency =
            moe.experts.iter().map(|e| aimer(e, compute)).collect::<Result<Vec<f64>>>()?;
        check_saliency(index, moe, &saliency)?;
        let reduced = Reduced::unmerged(most_salient(&saliency, moe, size.after), saliency);
        decisions.layers.insert(index, reduced.decided(index, moe, None));
    }
    Ok(())
}

/// −AIMER of `expert`. Experts whose weights have similar magnitudes are dropped first.
pub(crate) fn aimer(expert: &Expert, compute: &Compute) -> Result<f64> {
    let mut values = Vec::new();
    for linear in expert.linears() {
        let weight = to_f32(&linear.weight, compute)?;
        let flat = weight.flatten_all().and_then(|w| w.to_vec1::<f32>());
        values.extend(flat.map_err(|e| {
            Error::new(Kind::Numeric, "cannot read this weight")
                .source(e)
                .tensor(linear.weight.name())
        })?);
    }
    Ok(-saliency::aimer(values))
}

/// Converts the mixtures of `model`'s layers for multi-token prediction by `decided`, or drops
/// these layers; returns the effect.
pub(super) fn with_mtp(
    model: &mut Model,
    choice: MtpChoice,
    decided: impl Fn(usize, &Moe) -> (Ffn, LayerRecord),
    records: &mut Vec<LayerRecord>,
) -> Option<Effect> {
    let layers = match model.mtp.len() {
        0 => return None,
        1 => "1 layer".to_owned(),
        count => format!("{count} layers"),
    };
    let (option, what) = match choice {
        MtpChoice::Drop => {
            model.mtp.clear();
            ("mtp drop", "left out; the model's own function doesn't need them")
        }
        MtpChoice::Prune => {
            records.extend(convert_mtp(model, decided));
            ("mtp prune", "keep as many experts as the others, ranked by weights")
        }
    };
    let why = format!("{layers} for multi-token prediction {what}");
    Some(Effect::new(option, Kept::Exactly, why))
}

/// Converts the mixtures of `model`'s layers for multi-token prediction by `decided`, and returns
/// their records.
fn convert_mtp(
    model: &mut Model,
    decided: impl Fn(usize, &Moe) -> (Ffn, LayerRecord),
) -> Vec<LayerRecord> {
    let first = model.layers.len();
    let mut records = Vec::new();
    for (index, mtp) in model.mtp.iter_mut().enumerate() {
        let Some(moe) = mtp.layer.ffn.moe() else { continue };
        let (ffn, record) = decided(first + index, moe);
        mtp.layer.ffn = ffn;
        records.push(record);
    }
    records
}
