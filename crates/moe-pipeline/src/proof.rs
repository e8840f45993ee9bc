//! What is found out while a result is being written: hashes of what was read, and how far the result's logits are from the
//! source's.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use moe_checkpoint::{Error, Kind, Result};
use moe_forward::{Batch, Difference, Observer, logit_difference};
use moe_math::routing::Routing;
use moe_math::sampling;
use moe_passes::Identity;

use crate::convert::ConvertOptions;
use crate::prepare::{Hashes, Prepared};
use crate::receipt::Measured;

/// Logits of a result that promises identity may differ by this much for each unit of the largest logit.
const IDENTITY_TOLERANCE: f64 = 1e-4;

/// What the receipt says of sources and result.
pub(crate) struct Proof {
    pub hashes: Hashes,
    pub measured: Option<Measured>,
    pub warnings: Vec<String>,
    pub times: Vec<(&'static str, Duration)>,
}

impl Proof {
    /// Measures and hashes; ends early where `stop` is set.
    pub fn new(prepared: &Prepared, options: &ConvertOptions, stop: &AtomicBool) -> Result<Self> {
        let start = Instant::now();
        let measured = (options.probe_tokens > 0).then(|| measure(prepared, options, stop)).transpose()?;
        let mut warnings = Vec::new();
        if let Some(measured) = &measured {
            check_identity(&prepared.plan.identity, &measured.difference)?;
            warnings.extend(measured.split_groups.filter(|n| *n > 0).map(|split| {
                format!("{split} times in all layers, a token of the probe was given parts of several groups of shards")
            }));
        }
        let mut times = Vec::from_iter(measured.is_some().then(|| ("measure", start.elapsed())));
        let start = Instant::now();
        let hashes = prepared.hashes()?;
        times.push(("hash source", start.elapsed()));
        Ok(Self { hashes, measured, warnings, times })
    }
}

pub(crate) fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Relaxed) { Err(Error::new(Kind::Stopped, "stopped")) } else { Ok(()) }
}

/// Compares what is written, by the names it has, with its source on seeded random tokens.
///
/// From the very weights that are written: reading the files back would cost a large model the time of writing it
/// again. `eval --against` does that.
fn measure(prepared: &Prepared, options: &ConvertOptions, stop: &AtomicBool) -> Result<Measured> {
    const SEED: u64 = 0;
    let source = &prepared.source;
    let ids = sampling::token_ids(options.probe_tokens, source.vocab, &mut sampling::generator(SEED, 0));
    let batch = Batch::new([ids.as_slice()]);
    let group = prepared.plan.group;
    let mut watch = Watch { stop, group, split: 0 };
    let difference = logit_difference(source, &prepared.result, &batch, &options.compute, &mut watch)?;
    Ok(Measured { seed: SEED, difference, split_groups: (group > 1).then_some(watch.split) })
}

/// Ends a sweep where `stop` is set, and counts tokens whose experts are not whole groups.
struct Watch<'a> {
    stop: &'a AtomicBool,
    group: usize,
    split: u64,
}

impl Observer for Watch<'_> {
    fn routed(&mut self, _: usize, _: &Tensor, routing: &Routing) {
        if self.group > 1 {
            self.split += split_tokens(&routing.selected, routing.top_k, self.group);
        }
    }

    fn layer_done(&mut self, _: usize, _: usize) -> Result<()> {
        check_stop(self.stop)
    }
}

/// Tokens, with `top_k` experts each in `selected`, that have some but not all experts of a group of `group` neighbours.
fn split_tokens(selected: &[u32], top_k: usize, group: usize) -> u64 {
    let is_split = |experts: &&[u32]| {
        let mut groups: Vec<u32> = experts.iter().map(|expert| expert / group as u32).collect();
        groups.sort_unstable();
        groups.chunk_by(|a, b| a == b).any(|members| members.len() != group)
    };
    selected.chunks_exact(top_k).filter(is_split).count() as u64
}

fn check_identity(identity: &Identity, difference: &Difference) -> Result<()> {
    let limit = IDENTITY_TOLERANCE * difference.max_logit.max(1.0);
    if *identity != Identity::Exact || difference.max_logit_difference <= limit {
        return Ok(());
    }
    let what = format!(
        "the result should compute the source's function, but a logit differs by {:.3e}",
        difference.max_logit_difference
    );
    Err(Error::new(Kind::Numeric, what).remedy("this is a bug in moe-convert; please report it with this command"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_with_parts_of_groups_are_counted() {
        // Whole groups in any order; one shard of two groups; one group whole and two halves.
        assert_eq!(split_tokens(&[3, 2, 0, 1], 4, 2), 0);
        assert_eq!(split_tokens(&[0, 1, 1, 2, 4, 5], 2, 2), 1);
        assert_eq!(split_tokens(&[0, 1, 2, 5], 4, 2), 1);
    }
}
