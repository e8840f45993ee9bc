//! Summaries of receipts for people.

use std::collections::BTreeMap;

use moe_passes::distill::DistilledLayer;
use moe_passes::quantize::{ExpertRecord, QuantizedLayer};
use moe_passes::{
    DecidedBy, LayerDetails, LayerRecord, LayerTrust, PassInfo, ReportKind, RouterEdit,
};

use super::{EarlierPass, RECEIPT_FILE, Receipt, SourceRecord};
use crate::file_names::REPORT_FILE;

impl Receipt {
    /// The passes in order, with arrows between them.
    pub fn passes(&self) -> String {
        self.work().map(|(pass, _)| pass.name).collect::<Vec<_>>().join(" → ")
    }

    /// The passes in order, each with its options.
    pub fn work(&self) -> impl Iterator<Item = (&'static PassInfo, &serde_json::Value)> {
        let before = self.before.iter().map(|earlier| (earlier.pass, &earlier.options));
        before.chain([(self.pass, &self.options)])
    }

    /// A receipt for each of the earlier passes. Measurements are left out, since they are of all
    /// passes together.
    pub fn earlier(&self) -> Vec<Self> {
        let mut source = self.source.clone();
        let mut receipts = Vec::new();
        for earlier in &self.before {
            let made = earlier.made_of(&source);
            receipts.push(self.of_earlier(earlier, source));
            source = made;
        }
        receipts
    }

    /// The receipt of a pass that ran before the last one, on `source`.
    fn of_earlier(&self, earlier: &EarlierPass, source: SourceRecord) -> Self {
        let EarlierPass { pass, options, decided, pool, result, layers } = earlier.clone();
        Self {
            before: Vec::new(),
            source,
            training: self.training.clone().filter(|_| pass.report == ReportKind::Training),
            measured: None,
            held_out: None,
            warnings: Vec::new(),
            caveats: Vec::new(),
            engines: Vec::new(),
            pass,
            options,
            decided,
            pool,
            result,
            layers,
            ..self.clone()
        }
    }

    /// The first layer that was converted, and how its router was made.
    pub fn first_converted(&self) -> Option<(&LayerRecord, &RouterEdit)> {
        self.layers.iter().find_map(|layer| Some((layer, layer.router.as_ref()?)))
    }

    /// The details of type `T`, each with the index of its layer; other layers are left out.
    pub fn details<T: LayerDetails>(&self) -> Vec<(usize, T)> {
        self.layers.iter().filter_map(|layer| Some((layer.layer, layer.details()?))).collect()
    }

    /// The name of the last pass's baseline, even where none was measured.
    pub fn baseline_name(&self) -> &'static str {
        self.pass.baseline.map_or("random choice", |baseline| baseline.name)
    }

    /// Returns a few lines on how experts were made; none if no layer was converted.
    pub fn experts(&self) -> Vec<String> {
        let Some((first, _)) = self.first_converted() else { return Vec::new() };
        let converted = || self.layers.iter().filter(|l| l.router.is_some());
        let dense = match self.layers.len() - converted().count() {
            0 => String::new(),
            dense => format!(", {dense} stay dense"),
        };
        let count =
            format!("{} in each of {} layers{dense}", first.experts.len(), converted().count());
        if let Some(decided) = self.decided {
            let how = match decided {
                DecidedBy::Weights => "chosen without data",
                DecidedBy::OriginalStatistics => "chosen by statistics of the original",
                DecidedBy::OriginalText | DecidedBy::Sequence => "chosen layer by layer",
                DecidedBy::GivenPlan => "chosen by the given plan",
            };
            let say = match self.no_figures() {
                None => format!("{RECEIPT_FILE} and {REPORT_FILE} say"),
                Some(_) => format!("{RECEIPT_FILE} says"),
            };
            return vec![format!("{count}, {how} ({say} which)")];
        }
        let mut kinds = first.experts_by_kind();
        kinds[0] = format!("{count}: {}", kinds[0]);
        kinds
    }

    /// Returns a few words on how layers became dense; None if no layer did.
    pub fn distilled(&self) -> Option<String> {
        let layers = self.details::<DistilledLayer>();
        let (_, first) = layers.first()?;
        let fitted = layers.iter().filter(|(_, layer)| layer.fit.is_some()).count();
        let fit = if fitted > 0 {
            format!(", down projections fitted in {fitted}")
        } else {
            String::new()
        };
        Some(format!(
            "one network of {} neurons in each of {} layers{fit}",
            first.width,
            layers.len()
        ))
    }

    /// How each expert was quantized, as (layer, expert, record); experts with the fewest tokens of
    /// their own come first.
    pub fn coldest(&self) -> Vec<(usize, usize, ExpertRecord)> {
        let of_layer = |(layer, details): (usize, QuantizedLayer)| {
            let experts = details.experts.into_iter().enumerate();
            experts.map(move |(expert, record)| (layer, expert, record))
        };
        let layers = self.details::<QuantizedLayer>().into_iter();
        let mut records: Vec<_> = layers.flat_map(of_layer).collect();
        records.sort_by_key(|(layer, expert, record)| (record.counts.routed, *layer, *expert));
        records
    }

    /// The reason why no layer has figures on how far decisions about its experts can be trusted;
    /// None where one has, and where nothing was decided.
    pub fn no_figures(&self) -> Option<&'static str> {
        let has_others = matches!(self.pass.report, ReportKind::Quantized | ReportKind::Dense);
        if has_others || !self.details::<LayerTrust>().is_empty() {
            return None;
        }
        Some(match self.decided? {
            DecidedBy::Weights => {
                "no figures by layer (load, mass kept, errors): this method doesn't look at data"
            }
            DecidedBy::GivenPlan => {
                "no figures by layer (load, mass kept, errors): a given plan comes without data"
            }
            DecidedBy::OriginalStatistics | DecidedBy::OriginalText | DecidedBy::Sequence => {
                "no figures by layer (load, mass kept, errors): no layer was observed"
            }
        })
    }
}

impl EarlierPass {
    /// The pass's result as the source of the next pass.
    fn made_of(&self, source: &SourceRecord) -> SourceRecord {
        let Self { pass, result, .. } = self;
        SourceRecord {
            name: format!("{}, after {pass}", source.name),
            model_type: result.model_type.clone(),
            total_parameters: result.total_parameters,
            active_parameters: result.active_parameters,
            bytes: result.bytes,
            sha256: BTreeMap::new(),
        }
    }
}
