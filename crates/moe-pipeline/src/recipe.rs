//! Recipes: a TOML file with steps that run one after the other, some of them for every combination
//! of choices.
//!
//! A recipe's tables are read ([`syntax`]), its steps expanded ([`expand`]) and parsed ([`steps`]),
//! and then checked together ([`check`]) and against models ([`models`]).

mod blocks;
mod check;
mod commands;
mod defaults;
mod expand;
mod files;
mod guess;
mod idle;
mod keys;
mod misread;
mod mistake;
mod models;
mod outcome;
mod parsed;
mod read;
mod schema;
mod source;
mod spare;
mod spelled;
mod steps;
mod syntax;
mod take;
#[cfg(test)]
mod tests;
mod values;
mod variables;
mod wording;

pub use files::{JUNIT, check_summary};
pub use outcome::{StepOutcome, StepStatus, junit, markdown};
pub use parsed::{Recipe, Step, StepKind};
pub use schema::recipe_schema;
#[cfg(test)]
pub(crate) use {commands::all_commands, schema::command_of};
