//! The part of a receipt that is known before writing.

use std::collections::BTreeMap;

use moe_checkpoint::Checkpoint;
use moe_model::Model;
use moe_passes::Identity;

use super::pass_run::PassRun;
use super::planned::Planned;
use crate::outputs::plan_names;
use crate::receipt::{EarlierPass, FORMAT, Receipt, ResultRecord, SourceRecord, Tool};
use crate::resources::device_kind;
use crate::statistics;

impl Planned<'_> {
    /// The receipt before anything is hashed or measured.
    pub fn receipt(&self) -> Receipt {
        let last = self.last();
        let compute = self.opened.run.compute();
        let others =
            self.passes.iter().flat_map(|pass| pass.inputs.others.iter().zip(&pass.inputs.models));
        let left_out = self.side_files.left_out.iter();
        let effects = self.effects();
        Receipt {
            format: FORMAT,
            tool: Tool::this(),
            before: self.passes[..self.passes.len() - 1].iter().map(earlier).collect(),
            pass: last.pass.info(),
            options: last.pass.options(),
            source: read(&self.opened.checkpoint, self.source()),
            others: others.map(|(other, model)| read(other, model)).collect(),
            texts: BTreeMap::new(),
            observed: self.observed(),
            written: self.written(),
            dtype: compute.dtype.as_str().to_owned(),
            device: device_kind(&compute.device).to_owned(),
            writing: self.opened.run.options.writing(),
            router_dtype: compute.router_dtype.other_than_f32().map(str::to_owned),
            result: made(last),
            identity: Identity::of(&effects),
            effects,
            measured: None,
            held_out: None,
            training: None,
            decided: last.decisions.as_ref().map(|decisions| decisions.by),
            pool: last.deciding().and_then(|deciding| deciding.pool_stats),
            layers: last.planned.layers.clone(),
            warnings: self.warnings(),
            caveats: self.result().caveat_reasons().collect(),
            engines: self.result().engines(),
            left_out: left_out.map(|(name, why)| (name.clone(), (*why).to_owned())).collect(),
            files: BTreeMap::new(),
        }
    }

    /// Hashes of the text that statistics were gathered on, by name.
    fn observed(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (name, hash) in self.passes.iter().flat_map(PassRun::observed) {
            statistics::add_text(&mut all, name, hash);
        }
        all
    }

    /// Hashes of the plans that were written, by name.
    fn written(&self) -> BTreeMap<String, String> {
        let names = plan_names(self.passes.iter().map(|pass| pass.pass));
        let written = self
            .passes
            .iter()
            .filter_map(|pass| pass.pass.outputs().plan.zip(pass.written.clone()));
        written.filter_map(|(path, hash)| Some((names.get(path)?.clone(), hash))).collect()
    }
}

/// The record of a checkpoint that was read, and of its model.
fn read(checkpoint: &Checkpoint, model: &Model) -> SourceRecord {
    let model_type = checkpoint.config().get("model_type").and_then(serde_json::Value::as_str);
    let dir = checkpoint.dir().canonicalize().unwrap_or_else(|_| checkpoint.dir().to_owned());
    let parameters = model.parameters();
    SourceRecord {
        name: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        model_type: model_type.unwrap_or_default().to_owned(),
        total_parameters: parameters.total(),
        active_parameters: parameters.active(),
        bytes: checkpoint.tensors().values().map(|tensor| tensor.bytes()).sum(),
        sha256: BTreeMap::new(),
    }
}

/// The record of a pass before the last one.
fn earlier(run: &PassRun<'_>) -> EarlierPass {
    EarlierPass {
        pass: run.pass.info(),
        options: run.pass.options(),
        decided: run.decisions.as_ref().map(|decisions| decisions.by),
        pool: run.deciding().and_then(|deciding| deciding.pool_stats),
        result: made(run),
        layers: run.planned.layers.clone(),
    }
}

/// The record of a pass's result.
fn made(run: &PassRun<'_>) -> ResultRecord {
    let (model, tensors) = (&run.planned.model, &run.declaration.tensors);
    let parameters = model.parameters();
    ResultRecord {
        model_type: model.family.model_type.clone(),
        total_parameters: parameters.total(),
        active_parameters: parameters.active(),
        parameters,
        tensors: tensors.len(),
        tensors_copied: tensors.iter().filter(|(_, weight)| weight.stored().is_some()).count(),
        bytes: run.declaration.bytes(),
    }
}
