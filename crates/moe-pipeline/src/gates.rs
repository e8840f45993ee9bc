//! Quality gates: limits that an evaluation must meet.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use moe_checkpoint::{Checkpoint, Error, Kind, Result, json};
use moe_forward::{DomainReport, EvalReport};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::resources::ByteSize;
use crate::spelling::{folded, of_percentage};

/// Limits; a measurement that is no number keeps none.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Gates {
    /// Gate: maximum mean KL to the original, in nats, 0 or more (needs --original).
    #[arg(long, value_name = "NATS", allow_negative_numbers = true)]
    pub max_kl: Option<f64>,

    /// Gate: maximum increase of the loss over the original's, in nats; a negative one asks for a
    /// gain (needs --original).
    #[arg(long, value_name = "NATS", allow_negative_numbers = true)]
    pub max_loss_increase: Option<f64>,

    /// Gate: minimum share of tokens, above 0 and at most 1, whose most probable next token is the
    /// original's (needs --original).
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub min_agreement: Option<f64>,

    /// Gate: one of these three for one label of --data, as LABEL:GATE=LIMIT, such as
    /// code:max-kl=0.05; repeat it for more.
    #[arg(long = "domain", value_name = "LABEL:GATE=LIMIT")]
    #[serde(default)]
    pub domain: Vec<DomainGate>,

    /// Gate: maximum size of all weight files, such as 5GB.
    #[arg(long, value_name = "SIZE")]
    pub max_bytes: Option<ByteSize>,

    /// Gate: the loss of each label, and KL where there is one, must be those of this file, which
    /// eval --json printed before.
    #[arg(long, value_name = "FILE")]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub golden: Option<PathBuf>,

    /// Tolerance of --golden for losses and KL, in nats, 0 or more [default: 0.001].
    #[arg(long, value_name = "NATS", requires = "golden", allow_negative_numbers = true)]
    pub golden_tolerance: Option<f64>,
}

/// Relative tolerance: losses and KL of the same model on the same text differ only by rounding, on
/// another machine or device, too.
const GOLDEN_TOLERANCE: f64 = 1e-3;

/// The quantity that a gate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Kl,
    LossIncrease,
    Agreement,
}

impl Figure {
    const ALL: [Self; 3] = [Self::Kl, Self::LossIncrease, Self::Agreement];

    fn gate(self) -> &'static str {
        match self {
            Self::Kl => "max-kl",
            Self::LossIncrease => "max-loss-increase",
            Self::Agreement => "min-agreement",
        }
    }

    /// Returns the measured value in `row`; NaN where it needs an original and there is none.
    fn of(self, row: &DomainReport) -> f64 {
        let figure = match self {
            Self::Kl => row.kl(),
            Self::LossIncrease => row.loss_change(),
            Self::Agreement => row.against.as_ref().map(|against| against.top1_agreement),
        };
        figure.unwrap_or(f64::NAN)
    }

    /// Refuses a limit that no measurement meets, or that all meet.
    fn check(self, limit: f64) -> Result<()> {
        match self {
            Self::Kl => check_distance(self.gate(), limit),
            Self::LossIncrease if limit.is_finite() => Ok(()),
            Self::LossIncrease => Err(usage(
                self.gate(),
                limit,
                "give a number of nats, such as 0.05, or -0.5 where the loss must fall by that",
            )),
            Self::Agreement if limit > 0.0 && limit <= 1.0 => Ok(()),
            Self::Agreement if (2.0..=100.0).contains(&limit) => {
                let share =
                    format!("give a share above 0, at most 1: {} for {limit} %", limit / 100.0);
                Err(usage(self.gate(), limit, share))
            }
            Self::Agreement => {
                Err(usage(self.gate(), limit, "give a share above 0, at most 1, such as 0.9"))
            }
        }
    }

    fn keeps(self, measured: f64, limit: f64) -> bool {
        if self == Self::Agreement { measured >= limit } else { measured <= limit }
    }
}

/// Refuses a maximum distance, in nats, that nothing meets, or that everything does.
fn check_distance(gate: &str, limit: f64) -> Result<()> {
    if limit.is_finite() && limit >= 0.0 {
        Ok(())
    } else {
        Err(usage(gate, limit, "give a number of nats from 0 on, such as 0.05"))
    }
}

fn usage(gate: &str, limit: f64, remedy: impl Into<String>) -> Error {
    let option = format!("--{gate}");
    let what = format!("{option} {limit} is not a limit that a measurement can meet or miss");
    Error::new(Kind::Usage, what).options(&[&option]).remedy(remedy)
}

/// A gate for one label.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainGate {
    label: String,
    figure: Figure,
    limit: f64,
}

impl FromStr for DomainGate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = || {
            let (gate, limit) = text.rsplit_once('=')?;
            let (label, gate) = gate.rsplit_once(':')?;
            let gate = folded(gate);
            let figure = Figure::ALL.into_iter().find(|figure| figure.gate() == gate)?;
            let share = of_percentage(limit).filter(|_| figure == Figure::Agreement);
            let limit = share.or_else(|| limit.parse().ok())?;
            Some(Self { label: label.to_owned(), figure, limit })
        };
        let gate = parts().ok_or_else(|| {
            Error::new(Kind::Usage, format!("{text:?} is not a gate of a label")).remedy(
                "write LABEL:GATE=LIMIT with max-kl, max-loss-increase or min-agreement, such as code:max-kl=0.05",
            )
        })?;
        gate.figure.check(gate.limit)?;
        Ok(gate)
    }
}

impl Serialize for DomainGate {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!(
            "{}:{}={}",
            self.label,
            self.figure.gate(),
            self.limit
        ))
    }
}

impl<'de> Deserialize<'de> for DomainGate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A gate, with the measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredGate {
    /// Name of the gate, and the label that it is for.
    pub gate: String,
    /// The limit that the gate sets.
    pub limit: f64,
    /// The measured value, in the limit's unit.
    pub measured: f64,
    /// Whether the measured value meets the limit.
    #[serde(skip)]
    pub met: bool,
}

impl MeasuredGate {
    /// Both numbers and, where the gate isn't met, their distance.
    pub fn describe(&self) -> String {
        let Self { gate, limit, measured, met } = self;
        let text = |value: f64| match gate.as_str() {
            MAX_BYTES => ByteSize(value as u64).to_string(),
            _ => figure(value),
        };
        let both = format!("{gate} is {}, measured {}", text(*limit), text(*measured));
        if *met { both } else { format!("{both}, {} beyond it", text((measured - limit).abs())) }
    }
}

const MAX_BYTES: &str = "max-bytes";
const GOLDEN: &str = "golden-tolerance";

/// The error for the checkpoint `model`, which doesn't meet these gates.
pub fn not_met(failures: &[MeasuredGate], model: &Path) -> Error {
    let text: Vec<_> = failures.iter().map(MeasuredGate::describe).collect();
    let what = format!("quality gate not met: {}", text.join("; "));
    let mut remedies: Vec<&str> = failures.iter().map(|gate| remedy(&gate.gate)).collect();
    remedies.dedup();
    Error::new(Kind::Gate, what).file(model).remedy(remedies.join("; "))
}

/// Returns the remedy where `gate` isn't met.
fn remedy(gate: &str) -> &'static str {
    match gate {
        MAX_BYTES => "use fewer bits or keep fewer experts, or raise max-bytes",
        _ if gate.starts_with(GOLDEN) => {
            "find what changed since the golden file was written: model, text or build; where that is meant, write it again with eval --json"
        }
        _ => "keep more of the model, calibrate on more text or heal it; or loosen the gate",
    }
}

/// Formats `value` with six decimals, or in exponent form below 0.001.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size > 0.0 && size < 1e-3 => format!("{value:.2e}"),
        _ => format!("{value:.6}"),
    }
}

impl Gates {
    /// Refuses limits that can't be met or that everything meets, and those that nothing will be
    /// measured for: of labels that aren't in `labels`, or without an original. Reads no file.
    ///
    /// # Errors
    /// [`Kind::Usage`], with the range of the gate.
    pub fn check(&self, has_original: bool, labels: &[&str]) -> Result<()> {
        self.overall()
            .try_for_each(|(figure, limit)| limit.map_or(Ok(()), |limit| figure.check(limit)))?;
        self.check_tolerance()?;
        if let Some(gate) = self.comparing().filter(|_| !has_original) {
            let what = "this gate compares with an original, and none is given";
            return Err(Error::new(Kind::Usage, what)
                .remedy("give --original ORIGINAL")
                .idle(&[gate]));
        }
        match self.domain.iter().find(|gate| !labels.contains(&gate.label.as_str())) {
            Some(DomainGate { label, .. }) => {
                let what = format!("a gate for the label {label:?}, which no --data has");
                let remedy = format!("the labels are {}", labels.join(", "));
                Err(Error::new(Kind::Usage, what).options(&["--domain"]).remedy(remedy))
            }
            None => Ok(()),
        }
    }

    fn check_tolerance(&self) -> Result<()> {
        let Some(tolerance) = self.golden_tolerance else { return Ok(()) };
        check_distance(GOLDEN, tolerance)?;
        if self.golden.is_some() {
            return Ok(());
        }
        let what = "--golden-tolerance is given, but no golden file to compare with";
        Err(Error::new(Kind::Usage, what)
            .options(&["--golden-tolerance"])
            .remedy("give golden = FILE, or leave it out"))
    }

    /// Refuses a golden file that can't be compared with a measurement on `labels`.
    ///
    /// # Errors
    /// Errors of reading the file; [`Kind::Usage`] where it is of other text.
    pub fn check_golden(&self, labels: &[&str]) -> Result<()> {
        let Some(path) = &self.golden else { return Ok(()) };
        let golden = Golden::read(path)?;
        match golden.report.domains.iter().find(|row| !labels.contains(&row.label.as_str())) {
            Some(row) => Err(unknown_label(&row.label, path)),
            None => Ok(()),
        }
    }

    /// The first gate that compares with an original, as a key of a recipe, where gates have a
    /// table of their own.
    fn comparing(&self) -> Option<&'static str> {
        let overall =
            self.overall().find(|(_, limit)| limit.is_some()).map(|(figure, _)| match figure {
                Figure::Kl => "gates.max-kl",
                Figure::LossIncrease => "gates.max-loss-increase",
                Figure::Agreement => "gates.min-agreement",
            });
        overall.or((!self.domain.is_empty()).then_some("gates.domain"))
    }

    fn overall(&self) -> impl Iterator<Item = (Figure, Option<f64>)> {
        [
            (Figure::Kl, self.max_kl),
            (Figure::LossIncrease, self.max_loss_increase),
            (Figure::Agreement, self.min_agreement),
        ]
        .into_iter()
    }

    /// All gates, with the values that `report` has for the checkpoint `model`.
    ///
    /// # Errors
    /// Errors of reading the checkpoint's headers and the golden file.
    pub fn measured(&self, report: &EvalReport, model: &Path) -> Result<Vec<MeasuredGate>> {
        let beside = |gate: String, figure: Figure, limit: f64, row: &DomainReport| {
            let measured = figure.of(row);
            MeasuredGate { gate, limit, measured, met: figure.keeps(measured, limit) }
        };
        let overall = self.overall().filter_map(|(figure, limit)| Some((figure, limit?)));
        let overall = overall
            .map(|(figure, limit)| beside(figure.gate().to_owned(), figure, limit, &report.all));
        let mut gates: Vec<MeasuredGate> = overall.collect();
        for DomainGate { label, figure, limit } in &self.domain {
            let rows = report.domains.iter().filter(|row| row.label == *label);
            let name = format!("{} of {label}", figure.gate());
            gates.extend(rows.map(|row| beside(name.clone(), *figure, *limit, row)));
        }
        gates.extend(self.size(model)?);
        if let Some(path) = &self.golden {
            gates.extend(self.golden_gates(report, path)?);
        }
        Ok(gates)
    }

    /// The size gate of the checkpoint `model`, which needs no evaluation.
    fn size(&self, model: &Path) -> Result<Option<MeasuredGate>> {
        let Some(limit) = self.max_bytes else { return Ok(None) };
        let bytes = Checkpoint::open(model)?.files().iter().map(|file| file.bytes()).sum::<u64>();
        let (gate, met) = (MAX_BYTES.to_owned(), bytes <= limit.0);
        Ok(Some(MeasuredGate { gate, limit: limit.0 as f64, measured: bytes as f64, met }))
    }

    /// Refuses a checkpoint that is too large, before hours go into its evaluation.
    ///
    /// # Errors
    /// [`Kind::Gate`] for one that is too large; errors of reading the checkpoint's headers.
    pub fn check_size(&self, model: &Path) -> Result<()> {
        match self.size(model)?.filter(|gate| !gate.met) {
            Some(gate) => Err(not_met(&[gate], model)),
            None => Ok(()),
        }
    }

    /// Gates on the distance of losses and KL from those of the golden file.
    fn golden_gates(&self, report: &EvalReport, path: &Path) -> Result<Vec<MeasuredGate>> {
        let golden = Golden::read(path)?;
        let limit = self.golden_tolerance.unwrap_or(GOLDEN_TOLERANCE);
        let mut gates = Vec::new();
        for expected in golden.report.domains.iter().chain([&golden.report.all]) {
            let Some(row) = report.rows().find(|row| row.label == expected.label) else {
                return Err(unknown_label(&expected.label, path));
            };
            if row.tokens != expected.tokens {
                return Err(expected.of_other_text(row.tokens, path));
            }
            for (name, distance) in expected.distances(row) {
                let gate = format!("{GOLDEN} of the {name} of {}", row.label);
                let met = distance <= limit;
                gates.push(MeasuredGate { gate, limit, measured: distance, met });
            }
        }
        Ok(gates)
    }
}

/// The part of a golden file that is read; `eval --json` prints more.
#[derive(Deserialize)]
struct Golden {
    report: GoldenReport,
}

impl Golden {
    fn read(path: &Path) -> Result<Self> {
        json::read_expecting(path, "give a file that eval --json printed")
    }
}

fn unknown_label(label: &str, golden: &Path) -> Error {
    let what = format!("this golden has a label {label:?}, which no --data has");
    Error::new(Kind::Usage, what).file(golden).remedy("evaluate on the text it was made with")
}

#[derive(Deserialize)]
struct GoldenReport {
    domains: Vec<GoldenRow>,
    all: GoldenRow,
}

#[derive(Deserialize)]
struct GoldenRow {
    label: String,
    tokens: usize,
    loss: f64,
    against: Option<GoldenAgainst>,
}

impl GoldenRow {
    /// The distances of `found` from these figures by name; NaN where `found` has no such figure.
    fn distances(&self, found: &DomainReport) -> Vec<(&'static str, f64)> {
        let mut distances = vec![("loss", (found.loss - self.loss).abs())];
        if let Some(against) = &self.against {
            distances.push(("KL", (found.kl().unwrap_or(f64::NAN) - against.kl).abs()));
        }
        distances
    }

    /// The error for the file `golden`, which has this row, where the text has `tokens`.
    fn of_other_text(&self, tokens: usize, golden: &Path) -> Error {
        let Self { label, tokens: expected, .. } = self;
        let what = format!("this golden has {expected} tokens of {label:?}, the text has {tokens}");
        Error::new(Kind::Usage, what).file(golden).remedy("evaluate on the text it was made with")
    }
}

#[derive(Deserialize)]
struct GoldenAgainst {
    kl: f64,
}

#[cfg(test)]
mod tests;
