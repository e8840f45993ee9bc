//! The black-box tests of the program, in one executable: each executable would take as long to
//! link as the program.

// A panic is how a test reports.
#![allow(clippy::unwrap_used)]

mod common;

mod architecture;
mod budget;
mod contract;
mod dates;
mod distill;
mod failures;
mod full_disk;
mod gates;
mod heal;
mod help;
mod ignored;
mod interrupt;
mod kept;
mod kills;
mod links;
mod locations;
mod manual;
mod marks;
mod memory;
mod names;
mod passes;
mod pleasant;
mod prune;
mod readings;
mod receipts;
mod recipes;
mod refusals;
mod remedies;
mod replaced;
mod reports;
mod respelled;
mod resume;
mod side_files;
mod signals;
mod spelling;
mod terminal;
mod text;
mod tokens;
mod verify;
mod warned;
