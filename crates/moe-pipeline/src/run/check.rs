//! Checks whether passes accept each other's results, before any of them runs.

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Error, Kind, Result};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::Pass;

use super::held_out::held_out_of;
use super::other_inputs::OtherInputs;
use super::pass_run::declared;

/// Refuses passes that can't run one after the other without a checkpoint between them.
///
/// # Errors
/// [`Kind::Usage`] where there is no pass, one before the last has held-out text, or two train.
pub(crate) fn check_together(passes: &[&dyn Pass]) -> Result<()> {
    let Some((_, before)) = passes.split_last() else {
        return Err(Error::new(Kind::Usage, "there is no pass to run"));
    };
    if let Some(pass) = before.iter().find(|pass| held_out_of(**pass).is_some()) {
        let what = format!(
            "{} has held-out text, but it is the written result that is measured",
            pass.name()
        );
        return Err(Error::new(Kind::Usage, what)
            .options(&["--held-out"])
            .remedy("give the held-out text to the last pass"));
    }
    if passes.iter().filter(|pass| pass.outputs().training).count() > 1 {
        return Err(Error::new(
            Kind::Usage,
            "two passes train, but what is saved of a training is one",
        )
        .remedy("write a checkpoint between them: make them steps of their own"));
    }
    Ok(())
}

/// Plans `passes` on `model`, the model of `checkpoint`, each on the result of the one before, by
/// configs and shapes alone, and returns the model that they make. Reads neither weights nor text.
///
/// # Errors
/// As for [`Pass::plan`]; errors of reading checkpoints, statistics and plans that the passes name.
pub(crate) fn check_passes(
    passes: &[&dyn Pass],
    checkpoint: &Checkpoint,
    model: &Model,
    compute: &Compute,
) -> Result<Model> {
    let mut model = model.clone();
    for (index, pass) in passes.iter().enumerate() {
        let inputs = OtherInputs::read(*pass, &model, index == 0, checkpoint)?;
        let plan = pass.plan(&inputs.sources(&model, compute, None))?;
        model = declared(&plan.planned.model)?.1;
        // The config has no path yet.
        model.config_file = format!("the {CONFIG_FILE} that {} writes", pass.name()).into();
    }
    Ok(model)
}
