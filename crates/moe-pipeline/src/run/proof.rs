//! Computed while a result is being written: hashes of the inputs, and the distance of the result's
//! logits from the source's.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use half::bf16;
use moe_checkpoint::{Error, Kind, Result};
use moe_forward::{Batch, Difference, Observer, logit_difference};
use moe_math::Compute;
use moe_math::meter::Meter;
use moe_math::routing::Routing;
use moe_math::sampling;
use moe_passes::Identity;

use super::hashes::Hashes;
use super::planned::Planned;
use crate::receipt::{GroupTies, Measured};

/// The maximum difference of logits, in units of the largest logit, of a result that promises
/// identity.
const IDENTITY_TOLERANCE: f64 = 1e-4;

/// Hashes and measurements for the receipt.
pub(super) struct Proof {
    pub hashes: Hashes,
    pub measured: Option<Measured>,
    pub warnings: Vec<String>,
    pub times: Vec<(&'static str, Duration)>,
}

impl Proof {
    /// Measures and hashes; stops early if `stop` is set.
    pub fn new(planned: &Planned<'_>, stop: &AtomicBool) -> Result<Self> {
        let start = Instant::now();
        let probes = planned.opened.run.options.probe_tokens > 0;
        let measured = probes.then(|| measure(planned, stop)).transpose()?;
        let mut warnings = Vec::new();
        if let Some(measured) = &measured {
            check_identity(&Identity::of(&planned.effects()), &measured.difference)?;
            warnings.extend(measured.group_ties.and_then(tie_warning));
        }
        let mut times = Vec::from_iter(measured.is_some().then(|| ("measure", start.elapsed())));
        let start = Instant::now();
        let hashes = planned.hashes()?;
        times.push(("hash source", start.elapsed()));
        Ok(Self { hashes, measured, warnings, times })
    }
}

pub(super) fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Relaxed) { Err(Error::new(Kind::Stopped, "stopped")) } else { Ok(()) }
}

/// Compares the written tensors, by their names, with the source on seeded random tokens.
///
/// It uses the lazy weights that are being written: for a large model, reading the files back would
/// take as long as writing them. `eval --original` reads them back.
fn measure(planned: &Planned<'_>, stop: &AtomicBool) -> Result<Measured> {
    const SEED: u64 = 0;
    let (source, options) = (planned.source(), planned.opened.run.options);
    let ids =
        sampling::token_ids(options.probe_tokens, source.vocab, &mut sampling::generator(SEED, 0));
    let batch = Batch::new([ids.as_slice()]);
    let group = planned.group();
    let mut watch = StopObserver { stop, group, ties: GroupTies::default() };
    // This runs while tensors are written, whose stages the run's own meter records.
    let compute = Compute { meter: Meter::default(), ..options.compute.clone() };
    let difference = logit_difference(source, planned.result(), &batch, &compute, &mut watch)?;
    Ok(Measured { seed: SEED, difference, group_ties: (group > 1).then_some(watch.ties) })
}

/// Stops a sweep if `stop` is set, and counts ties between groups of experts.
struct StopObserver<'a> {
    stop: &'a AtomicBool,
    group: usize,
    ties: GroupTies,
}

impl Observer for StopObserver<'_> {
    fn routed(&mut self, _: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        if self.group == 1 {
            return Ok(());
        }
        let rows = logits.to_dtype(DType::F32).and_then(|logits| logits.to_vec2::<f32>());
        let rows = rows
            .map_err(|e| Error::new(Kind::Numeric, "cannot look for ties in routing").source(e))?;
        for logits in rows {
            self.ties.routings += 1;
            self.ties.in_f32 += u64::from(is_tied(&logits, routing.top_k, self.group));
            let rounded: Vec<f32> = logits.iter().map(|z| bf16::from_f32(*z).to_f32()).collect();
            self.ties.in_bf16 += u64::from(is_tied(&rounded, routing.top_k, self.group));
        }
        Ok(())
    }

    fn layer_done(&mut self, _: usize, _: usize) -> Result<()> {
        check_stop(self.stop)
    }
}

/// Whether the last of the chosen groups, each of `group` neighboring experts, has the same
/// probability in f32 as the first that isn't chosen.
fn is_tied(logits: &[f32], top_k: usize, group: usize) -> bool {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|z| (z - largest).exp()).sum();
    let mut groups: Vec<f32> =
        logits.iter().step_by(group).map(|z| (z - largest).exp() / sum).collect();
    groups.sort_by(|a, b| b.total_cmp(a));
    let chosen = top_k / group;
    groups.get(chosen).is_some_and(|next| *next == groups[chosen - 1])
}

fn tie_warning(ties: GroupTies) -> Option<String> {
    let GroupTies { routings, in_f32, in_bf16 } = ties;
    let consequence = "runtimes that break ties otherwise than by index mix their shards there";
    match (in_f32, in_bf16) {
        (0, 0) => None,
        (0, _) => Some(format!(
            "with routers in bf16, two groups of shards tie in {in_bf16} of {routings} routings of the probe: {consequence}"
        )),
        _ => Some(format!(
            "two groups of shards tie in {in_f32} of {routings} routings of the probe ({in_bf16} in bf16): {consequence}; \
             raise --router-std"
        )),
    }
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
    Err(Error::new(Kind::Numeric, what)
        .remedy("this is a bug in moe-convert; please report it with this command"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_for_the_last_place_are_found() {
        // Two groups of two are chosen. In the first case the second and third are equal, in the
        // next only the third and fourth.
        assert!(is_tied(&[3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0], 4, 2));
        assert!(!is_tied(&[3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], 4, 2));
        // Logits that differ, but whose probabilities in f32 don't.
        assert!(is_tied(&[1e-9, 1e-9, 2e-9, 2e-9], 2, 2));
        // All groups are chosen.
        assert!(!is_tied(&[0.0; 4], 4, 2));
    }
}
