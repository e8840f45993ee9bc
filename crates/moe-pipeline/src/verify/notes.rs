//! Finds pitfalls in a checkpoint that stock loaders load.

mod config;
mod tensors;
mod tokens;

use moe_checkpoint::Checkpoint;
use moe_model::Model;

use super::contents::ignored;
use super::loaders::has_tokenizer;
use super::older;

/// Notes on `checkpoint`, one sentence each.
pub(super) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let config = checkpoint.config();
    let mut notes = config::of_keys(config, model);
    notes.extend(tensors::of_fused(checkpoint, model));
    notes.extend(tensors::of_expert_names(checkpoint, model));
    notes.extend(tensors::of_router(checkpoint, model));
    notes.extend(older::notes(checkpoint, model));
    notes.extend(model.caveats().map(str::to_owned));
    notes.extend(tensors::of_tied_head(checkpoint));
    notes.extend(ignored(checkpoint.side_files()));
    notes.extend(tensors::of_prefix(checkpoint));
    notes.extend(tensors::of_unknown(checkpoint, model));
    notes.extend(checkpoint.index().map(tensors::of_index).unwrap_or_default());
    notes.extend(config::of_two_keys(config));
    notes.extend(tokens::notes(checkpoint, model));
    notes.extend(checkpoint.warnings().iter().cloned());
    if !has_tokenizer(checkpoint.side_files()) {
        notes.push(
            "there is no tokenizer: AutoTokenizer, vLLM and SGLang need one next to the weights"
                .to_owned(),
        );
    }
    notes
}
