//! Main figures that pages on several passes show.

use moe_forward::{Comparison, DomainReport};

use crate::receipt::Receipt;
use crate::report::number::{decimal, percent, signed};
use crate::resources::ByteSize;

/// A figure: its name, its value, and what to compare it with.
pub(super) type Tile = [String; 3];

pub(super) fn tile(name: &str, value: String, beside: impl Into<String>) -> Tile {
    [name.to_owned(), value, beside.into()]
}

/// `after` as a share of `before`.
pub(super) fn share(before: f64, after: f64) -> String {
    percent((before > 0.0).then(|| after / before))
}

/// The size of all weights before and after.
pub(super) fn weights(receipt: &Receipt) -> Tile {
    let [before, after] = [receipt.source.bytes, receipt.result.bytes];
    let change = format!("{} → {}", ByteSize(before), ByteSize(after));
    tile("weights", change, share(before as f64, after as f64) + " remain")
}

/// Held-out text of all domains together, as far as it was measured.
pub(super) struct HeldOut<'a> {
    all: Option<&'a DomainReport>,
    baseline: Option<f64>,
}

impl<'a> HeldOut<'a> {
    pub fn of(receipt: &'a Receipt) -> Self {
        let held_out = receipt.held_out.as_ref();
        let baseline = held_out.and_then(|held_out| held_out.baseline.as_ref());
        Self {
            all: held_out.map(|held_out| &held_out.result.all),
            baseline: baseline.and_then(|baseline| baseline.all.loss_change()),
        }
    }

    /// The comparison with the original.
    pub fn against(&self) -> Option<&'a Comparison> {
        self.all?.against.as_ref()
    }

    pub fn loss(&self, beside: String) -> Tile {
        let change = self.all.and_then(DomainReport::loss_change);
        tile("Δ loss on held-out text", signed(change), beside)
    }

    /// The change of the loss, and that of the baseline, which is called `name`; `unmeasured` if
    /// there is none.
    pub fn loss_beside_baseline(&self, name: &str, unmeasured: &str) -> Tile {
        self.loss(match self.baseline {
            Some(_) => format!("{name}: {}", signed(self.baseline)),
            None => unmeasured.to_owned(),
        })
    }

    pub fn agreement(&self) -> Tile {
        let top1 = self.against().map(|against| against.top1_agreement);
        tile("top-1 agreement", percent(top1), self.kl())
    }

    pub fn kl(&self) -> String {
        format!("KL {}", decimal(self.against().map(|against| against.kl), 4))
    }
}
