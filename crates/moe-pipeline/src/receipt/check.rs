//! Refuses receipts whose figures no run gives: pages, tables and buffers are sized by them.

use std::fmt;

use moe_math::figures::{Checked, check_part, within};
use moe_passes::{LayerRecord, LayerTrust, PassInfo, RouterRows};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Receipt, ResultRecord, SourceRecord};
use crate::train::TrainingRecord;
use crate::trust::HeldOutReport;

/// The greatest count in a receipt: floats, and readers of JSON that have no others, hold each
/// number up to it.
const MAX_COUNT: u64 = 1 << 53;

/// Keys below which numbers are those that a user gave, which may be of any size.
const GIVEN: [&str; 4] = ["options", "writing", "settings", "seed"];

/// Any JSON whose numbers are none above [`MAX_COUNT`]. It is read for the errors alone.
pub(super) struct Counts;

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Counts {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<Self, E> {
        if count <= MAX_COUNT {
            return Ok(self);
        }
        Err(E::custom(format_args!("{count} is more than anything that is counted here")))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        while let Some(key) = object.next_key::<String>()? {
            if GIVEN.contains(&key.as_str()) {
                object.next_value::<IgnoredAny>()?;
            } else {
                object.next_value::<Self>()?;
            }
        }
        Ok(self)
    }
}

impl Receipt {
    /// Refuses figures that contradict each other, which no run gives.
    ///
    /// # Errors
    /// What is wrong, in a sentence that begins with the key.
    pub(super) fn check(&self) -> Checked {
        for (index, earlier) in self.before.iter().enumerate() {
            let key = format!("before[{index}]");
            within(&key, within("result", earlier.result.check()))?;
            within(&key, check_layers(earlier.pass, &earlier.layers))?;
        }
        within("source", self.source.check())?;
        within("result", self.result.check())?;
        if let Some(held_out) = &self.held_out {
            within("held_out", held_out.check())?;
        }
        if let Some(training) = &self.training {
            within("training", training.check())?;
        }
        check_layers(self.pass, &self.layers)
    }
}

/// Refuses records of `layers` that `pass` doesn't give.
fn check_layers(pass: &PassInfo, layers: &[LayerRecord]) -> Checked {
    for (index, layer) in layers.iter().enumerate() {
        within(format_args!("layers[{index}]"), check_layer(pass, layer))?;
    }
    Ok(())
}

fn check_layer(pass: &PassInfo, layer: &LayerRecord) -> Checked {
    let Some(details) = &layer.details else { return Ok(()) };
    let Some(kind) = pass.details else {
        return Err(format!("details are there, though {pass} gives none"));
    };
    within("details", kind.check(details))?;
    let rows = layer.router.as_ref().map(|router| router.rows);
    if let (Some(RouterRows::Kept { of, .. }), Some(trust)) = (rows, layer.details::<LayerTrust>())
        && of != trust.experts[0]
    {
        let experts = trust.experts[0];
        return Err(format!("router.of is {of}, where details.experts[0] is {experts}"));
    }
    Ok(())
}

impl SourceRecord {
    fn check(&self) -> Checked {
        let [active, total] =
            [self.active_parameters, self.total_parameters].map(|count| count as u64);
        check_part(["active_parameters", "total_parameters"], active, total)
    }
}

impl ResultRecord {
    fn check(&self) -> Checked {
        let [copied, tensors] = [self.tensors_copied, self.tensors].map(|count| count as u64);
        check_part(["tensors_copied", "tensors"], copied, tensors)?;
        let [active, total] =
            [self.active_parameters, self.total_parameters].map(|count| count as u64);
        check_part(["active_parameters", "total_parameters"], active, total)
    }
}

impl HeldOutReport {
    fn check(&self) -> Checked {
        within("result", self.result.check())?;
        for (index, stage) in self.stages.iter().enumerate() {
            within(format_args!("stages[{index}].report"), stage.report.check())?;
        }
        self.baseline.as_ref().map_or(Ok(()), |baseline| within("baseline", baseline.check()))
    }
}

impl TrainingRecord {
    fn check(&self) -> Checked {
        check_part(["written", "steps"], self.written, self.steps)?;
        for (key, report) in [("before", &self.before), ("after", &self.after)] {
            if let Some(report) = report {
                within(key, report.check())?;
            }
        }
        for (index, change) in self.load.iter().enumerate() {
            let key = format!("load[{index}]");
            within(&key, within("first", change.first.check()))?;
            within(&key, within("last", change.last.check()))?;
        }
        Ok(())
    }
}
