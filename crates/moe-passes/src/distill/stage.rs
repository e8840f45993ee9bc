//! Trains dense layers to give what the mixtures they were made from give.

use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::{Saved, ScratchStore};
use moe_forward::{Calibration, Converted, Converter, Forcing, Inputs, Observer};
use moe_math::Compute;
use moe_math::meter::Work;
use moe_model::{Expert, Result};

use super::block::{LayerTrainingData, Learned, train};
use super::errors::LayerErrors;
use super::observe::Tokens;
use super::student::dense;
use super::weights::kept;
use super::{DistillOptions, DistilledLayer};
use crate::pass::{DecidedLayer, Kept, LayerEdits, LayerStage, Sources};

/// A further sweep, in which each layer that isn't exact is trained.
pub(super) struct TrainingStage {
    name: &'static str,
    steps: u64,
    forcing: Forcing,
    options: DistillOptions,
    hidden: usize,
    compute: Compute,
    scratch: Option<Arc<ScratchStore>>,
    begun: Option<Begun>,
}

/// The state of a stage that has begun.
struct Begun {
    tokens: Tokens,
    /// The decisions made before this stage.
    before: LayerEdits,
    edits: LayerEdits,
    errors: LayerErrors,
    /// The folder in which trained layers are saved.
    saved: Arc<Saved>,
}

impl TrainingStage {
    /// All stages that `options` ask for: one on the states that --forcing chooses, then one on the
    /// student's own states.
    pub fn all(options: &DistillOptions, sources: &Sources<'_>) -> Vec<Box<dyn LayerStage>> {
        let training = &options.training;
        let stages = [
            ("trained", training.steps, options.forcing.into()),
            ("trained on own states", training.student_steps, Forcing::Student),
        ];
        let mut all: Vec<Box<dyn LayerStage>> = Vec::new();
        for (name, steps, forcing) in stages.into_iter().filter(|(_, steps, _)| *steps > 0) {
            all.push(Box::new(Self {
                name,
                steps,
                forcing,
                options: options.clone(),
                hidden: sources.model.hidden,
                compute: sources.compute.clone(),
                scratch: sources.scratch.cloned(),
                begun: None,
            }));
        }
        all
    }

    fn begun_mut(&mut self) -> &mut Begun {
        self.begun.as_mut().expect("a sweep begins first")
    }

    fn begun(&self) -> &Begun {
        self.begun.as_ref().expect("a sweep begins first")
    }

    /// Layer `index` after the steps of this stage, trained now or read from what was saved.
    fn trained(
        &self,
        index: usize,
        layer: &DecidedLayer,
        inputs: &Inputs<'_>,
    ) -> Result<DecidedLayer> {
        let mut network = layer.ffn.dense().expect("it was made dense").clone();
        let learned = self.saved_or_learned(index, &network, inputs)?;
        if let Some(best) = &learned.best {
            let linears = [&mut network.gate, &mut network.up, &mut network.down];
            for (linear, values) in linears.into_iter().zip(best) {
                linear.weight = kept(values, &linear.weight, self.scratch.as_deref())?;
            }
        }
        let mut record = layer.record.clone();
        record.change_details(|made: &mut DistilledLayer| made.trained.push(learned.trained));
        Ok(dense(network, record))
    }

    /// Returns the result of training `network`: the saved one if there is one, or else a new one,
    /// which it saves.
    fn saved_or_learned(
        &self,
        index: usize,
        network: &Expert,
        inputs: &Inputs<'_>,
    ) -> Result<Learned> {
        let saved = &self.begun().saved;
        let name = format!("{}.{index}", self.name.replace(' ', "-"));
        let found = saved.get(&name)?;
        if let Some(learned) = found.and_then(|bytes| Learned::of_bytes(&bytes, network)) {
            return Ok(learned);
        }
        let learned = self.learned(index, network, inputs)?;
        saved.put(&name, &learned.to_bytes())?;
        Ok(learned)
    }

    /// Trains `network` of layer `index` for the steps of this stage.
    fn learned(&self, index: usize, network: &Expert, inputs: &Inputs<'_>) -> Result<Learned> {
        let begun = self.begun();
        let training_data = LayerTrainingData {
            index,
            inputs,
            tokens: &begun.tokens,
            compute: &self.compute,
            hidden: self.hidden,
            seed: self.options.calibration.seed,
        };
        self.compute.stage("looks", Work::UNCOUNTED, || {
            train(&training_data, network, self.steps, &self.options.training)
        })
    }
}

impl LayerStage for TrainingStage {
    fn name(&self) -> &'static str {
        self.name
    }

    fn begin(&mut self, calibration: &Calibration, so_far: LayerEdits, saved: Arc<Saved>) {
        self.begun = Some(Begun {
            tokens: Tokens::new(calibration),
            edits: so_far.clone(),
            before: so_far,
            errors: LayerErrors::default(),
            saved,
        });
    }

    fn finish(&mut self) -> LayerEdits {
        let Begun { edits, errors, .. } = self.begun_mut();
        errors.record(&mut edits.layers);
        edits.clone()
    }

    fn taken_back(&mut self) -> LayerEdits {
        let Begun { before, edits, .. } = self.begun_mut();
        let mut taken_back = before.clone();
        for (index, layer) in &mut taken_back.layers {
            let tried = edits.layers.get(index);
            if let Some(tried) = tried.and_then(|layer| layer.record.details::<DistilledLayer>()) {
                layer
                    .record
                    .change_details(|made: &mut DistilledLayer| made.trained = tried.trained);
            }
        }
        taken_back
    }
}

impl Converter for TrainingStage {
    fn forcing(&self) -> Forcing {
        self.forcing
    }

    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Converted>> {
        let Some(layer) = self.begun_mut().edits.layers.get(&index).cloned() else {
            return Ok(None);
        };
        let details = layer.record.details::<DistilledLayer>();
        let is_exact = details.is_none_or(|details| details.kept == Kept::Exactly);
        let layer = if is_exact { layer } else { self.trained(index, &layer, inputs)? };
        let ffn = layer.ffn.clone();
        self.begun_mut().edits.layers.insert(index, layer);
        Ok(Some(ffn.into()))
    }

    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let Begun { tokens, errors, .. } = self.begun_mut();
        errors.add(index, tokens, original, converted)
    }
}

impl Observer for TrainingStage {}
