//! Weights made from others on demand: some of their neurons, scaled, redrawn, with noise; or means
//! of several.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::DType;
use moe_forward::{candle_dtype, not_finite};
use moe_math::{encoding, orthogonal, sampling};
use moe_model::{Error, Kind, Result, Weight, WeightSource};

/// The axis of a projection that neurons lie along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Each row is a neuron: gate and up, `[width, hidden]`.
    Rows,
    /// Each column is a neuron: down, `[hidden, width]`.
    Columns,
}

impl Axis {
    /// The index of this axis in a projection's shape.
    fn dimension(self) -> usize {
        match self {
            Self::Rows => 0,
            Self::Columns => 1,
        }
    }
}

/// The neurons of a feed-forward network that make up an expert.
#[derive(Clone)]
pub(crate) enum Neurons {
    All,
    Range(Range<usize>),
    /// All neurons, repeated this many times.
    Copies(usize),
    /// One set of a partition that is found when it is first needed: the partition, the index of
    /// the set, and how many neurons it has.
    Set(Arc<dyn Partition>, usize, usize),
}

/// Neurons cut into sets.
pub(crate) trait Partition: Send + Sync {
    /// The neurons of each set, ascending.
    fn sets(&self) -> Result<&[Vec<u32>]>;
}

impl Neurons {
    /// The number of these neurons, for a network of `width`.
    pub fn count(&self, width: usize) -> usize {
        match self {
            Self::All => width,
            Self::Range(range) => range.len(),
            Self::Copies(copies) => copies * width,
            Self::Set(_, _, count) => *count,
        }
    }
}

/// Seeded noise on a weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub std: f64,
    pub fraction: f64,
    pub seed: u64,
    pub stream: u64,
}

/// Some of an expert's neurons, redrawn from N(mean, std²) of the whole matrix (Drop-Upcycling,
/// 2502.19261 §3).
#[derive(Clone)]
pub(crate) struct Redraw {
    /// Positions among the expert's neurons, the same for gate, up and down.
    pub neurons: Arc<BTreeSet<usize>>,
    pub seed: u64,
    pub stream: u64,
}

/// One projection of an expert, made from that of a dense network: (chosen neurons, redrawn) ·
/// factor + noise.
#[derive(Clone)]
pub(crate) struct Part {
    pub base: Weight,
    pub axis: Axis,
    pub neurons: Neurons,
    pub factor: f64,
    pub redraw: Option<Redraw>,
    pub noise: Option<Noise>,
}

impl Part {
    /// The weight, in the encoding of the base. It is the base's own bytes where nothing changes
    /// them.
    pub fn weight(self) -> Weight {
        let as_stored = match (&self.neurons, self.axis) {
            (Neurons::All, _) => Some(self.base.clone()),
            (Neurons::Range(Range { start, end }), Axis::Rows) => {
                self.base.stored().map(|stored| Weight::from(stored.rows(*start, *end)))
            }
            _ => None,
        };
        if let Some(weight) = as_stored.filter(|_| self.only_chooses()) {
            return weight;
        }
        let mut shape = self.base.shape().to_vec();
        shape[self.axis.dimension()] = self.neurons.count(self.width());
        let base = self.base.clone();
        Weight::made(base.name(), base.dtype(), &shape, self)
    }

    /// The number of neurons of the base.
    fn width(&self) -> usize {
        self.base.shape()[self.axis.dimension()]
    }

    /// Whether all values are the base's, bit for bit.
    fn only_chooses(&self) -> bool {
        self.factor == 1.0 && self.redraw.is_none() && self.noise.is_none()
    }

    /// The bytes of the chosen neurons.
    fn chosen(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Some(chosen) = self.ranges()? else { return Ok(bytes) };
        let element = self.base.dtype().bitsize() / 8;
        let columns = self.base.shape()[1] * element;
        Ok(match self.axis {
            Axis::Rows => chosen
                .iter()
                .flat_map(|r| &bytes[r.start * columns..r.end * columns])
                .copied()
                .collect(),
            Axis::Columns => {
                let rows = bytes.chunks_exact(columns);
                let parts = rows.flat_map(|row| {
                    chosen.iter().map(|r| &row[r.start * element..r.end * element])
                });
                parts.collect::<Vec<_>>().concat()
            }
        })
    }

    /// Ranges of the neurons that are chosen, in order; None where all are.
    fn ranges(&self) -> Result<Option<Vec<Range<usize>>>> {
        Ok(match &self.neurons {
            Neurons::All => None,
            Neurons::Range(range) => Some(vec![range.clone()]),
            Neurons::Copies(copies) => Some(vec![0..self.width(); *copies]),
            Neurons::Set(partition, index, _) => {
                let neurons = partition.sets()?[*index].iter();
                Some(neurons.map(|n| *n as usize..*n as usize + 1).collect())
            }
        })
    }

    fn redraw(&self, redraw: &Redraw, all: &[f32], values: &mut [f32]) {
        let count = all.len() as f64;
        let mean = all.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = all.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        let neurons = self.neurons.count(self.width());
        let across = values.len() / neurons.max(1);
        let mut random = sampling::generator(redraw.seed, redraw.stream);
        for neuron in redraw.neurons.iter() {
            let drawn = sampling::normal(across, variance.sqrt(), &mut random);
            for (i, x) in drawn.into_iter().enumerate() {
                let at = if self.axis == Axis::Rows {
                    neuron * across + i
                } else {
                    i * neurons + neuron
                };
                values[at] = (mean + f64::from(x)) as f32;
            }
        }
    }
}

impl WeightSource for Part {
    fn make(&self) -> Result<Vec<u8>> {
        let (stored, dtype) = read_finite(&self.base)?;
        let all = self
            .redraw
            .as_ref()
            .map(|_| encoding::decode_f32(&stored, dtype))
            .transpose()
            .map_err(|e| numeric(self.base.name(), e))?;
        let chosen = self.chosen(stored)?;
        if self.only_chooses() {
            return Ok(chosen);
        }
        let mut values =
            encoding::decode_f32(&chosen, dtype).map_err(|e| numeric(self.base.name(), e))?;
        if let (Some(redraw), Some(all)) = (&self.redraw, all) {
            self.redraw(redraw, &all, &mut values);
        }
        let factor = self.factor as f32;
        values.iter_mut().for_each(|x| *x *= factor);
        if let Some(Noise { std, fraction, seed, stream }) = self.noise {
            sampling::add_noise(&mut values, std, fraction, &mut sampling::generator(seed, stream));
        }
        encoded(&values, dtype, self.base.name())
    }
}

/// The bytes of `weight` and their encoding; refuses values that are not finite.
pub(crate) fn read_finite(weight: &Weight) -> Result<(Vec<u8>, DType)> {
    let dtype = candle_dtype(weight)?;
    let bytes = weight.read()?;
    match encoding::first_non_finite(&bytes, dtype).map_err(|e| numeric(weight.name(), e))? {
        None => Ok((bytes, dtype)),
        Some(element) => Err(not_finite(weight, element as u64)),
    }
}

/// The values of a plain `weight`; refuses those that are not finite.
pub(crate) fn finite_values(weight: &Weight) -> Result<Vec<f32>> {
    let (bytes, dtype) = read_finite(weight)?;
    encoding::decode_f32(&bytes, dtype).map_err(|e| numeric(weight.name(), e))
}

/// `values` as `dtype`. Refuses values that overflow it.
pub(crate) fn encoded(values: &[f32], dtype: DType, name: &str) -> Result<Vec<u8>> {
    let bytes = encoding::encode_f32(values, dtype).map_err(|e| numeric(name, e))?;
    match encoding::first_non_finite(&bytes, dtype).map_err(|e| numeric(name, e))? {
        None => Ok(bytes),
        Some(position) => Err(Error::new(
            Kind::Numeric,
            format!("element {position} overflows {dtype:?} when it is converted"),
        )
        .tensor(name)
        .remedy(match dtype {
            DType::F16 => "convert the source to bfloat16 or float32 first",
            _ => "this layer's weights are too large to compute with: get a sound checkpoint",
        })),
    }
}

/// Some rows of a weight, as they are stored.
struct ChosenRows {
    base: Weight,
    rows: Arc<[usize]>,
}

/// The rows `rows` of `base` (entries, if it is a vector), byte for byte; `base` itself where these
/// are all its rows.
pub(crate) fn chosen_rows(base: &Weight, rows: Arc<[usize]>) -> Weight {
    if rows.iter().copied().eq(0..base.shape()[0]) {
        return base.clone();
    }
    let mut shape = base.shape().to_vec();
    shape[0] = rows.len();
    Weight::made(base.name(), base.dtype(), &shape, ChosenRows { base: base.clone(), rows })
}

impl WeightSource for ChosenRows {
    fn make(&self) -> Result<Vec<u8>> {
        let (bytes, _) = read_finite(&self.base)?;
        let row = bytes.len() / self.base.shape()[0];
        Ok(self.rows.iter().flat_map(|r| &bytes[r * row..][..row]).copied().collect())
    }
}

/// A vector whose last entries are replaced.
struct WithTail {
    base: Weight,
    count: usize,
    value: f32,
}

/// The vector `base` with its last `count` entries replaced by `value`.
pub(crate) fn with_tail(base: &Weight, count: usize, value: f32) -> Weight {
    let made = WithTail { base: base.clone(), count, value };
    Weight::made(base.name(), base.dtype(), base.shape(), made)
}

impl WeightSource for WithTail {
    fn make(&self) -> Result<Vec<u8>> {
        let (mut bytes, dtype) = read_finite(&self.base)?;
        let tail = encoded(&vec![self.value; self.count], dtype, self.base.name())?;
        let start = bytes.len() - tail.len();
        bytes[start..].copy_from_slice(&tail);
        Ok(bytes)
    }
}

/// The mean of weights of one shape, summed in f64.
struct Mean(Vec<Weight>);

/// The mean of `weights`, which have one shape, in the encoding of the first.
pub(crate) fn mean(weights: Vec<Weight>) -> Weight {
    let first = weights[0].clone();
    if weights.iter().all(|w| w.same_source(&first)) {
        return first;
    }
    Weight::made(first.name(), first.dtype(), first.shape(), Mean(weights))
}

impl WeightSource for Mean {
    fn make(&self) -> Result<Vec<u8>> {
        let first = &self.0[0];
        let mut sums = vec![0f64; first.elements()];
        for weight in &self.0 {
            sums.iter_mut().zip(finite_values(weight)?).for_each(|(sum, x)| *sum += f64::from(x));
        }
        let count = self.0.len() as f64;
        let values: Vec<f32> = sums.into_iter().map(|sum| (sum / count) as f32).collect();
        encoded(&values, candle_dtype(first)?, first.name())
    }
}

/// Rows that a survey of the model's inputs fills in before the rows are written.
pub(crate) type Surveyed = Arc<OnceLock<Vec<f32>>>;

/// The source of a router's rows.
#[derive(Clone)]
pub(crate) enum RowSelection {
    Zeros,
    Normal {
        std: f64,
        seed: u64,
        stream: u64,
    },
    /// Orthonormal rows times a gain.
    Orthogonal {
        gain: f64,
        seed: u64,
        stream: u64,
    },
    Surveyed(Surveyed),
}

/// A matrix `[rows · times, columns]` in which each row is repeated `times` times in succession.
struct Repeated {
    rows: RowSelection,
    shape: [usize; 2],
    times: usize,
    dtype: DType,
    name: String,
}

/// `shape[0]` rows in the encoding of `like`: distinct rows, each repeated `times` times.
pub(crate) fn rows(
    name: String,
    rows: RowSelection,
    shape: [usize; 2],
    times: usize,
    like: &Weight,
) -> Result<Weight> {
    let made = Repeated { rows, shape, times, dtype: candle_dtype(like)?, name: name.clone() };
    Ok(Weight::made(name, like.dtype(), &shape, made))
}

impl Repeated {
    /// The distinct rows, `[count, columns]`.
    fn distinct(&self, count: usize, columns: usize) -> Result<Vec<f32>> {
        match &self.rows {
            RowSelection::Zeros => Ok(vec![0.0; count * columns]),
            RowSelection::Normal { std, seed, stream } => {
                let mut random = sampling::generator(*seed, *stream);
                Ok(sampling::normal(count * columns, *std, &mut random))
            }
            RowSelection::Orthogonal { gain, seed, stream } => {
                let mut random = sampling::generator(*seed, *stream);
                let rows = orthogonal::rows(count, columns, *gain, &mut random)
                    .map_err(|e| numeric(&self.name, e))?;
                Ok(rows.into_iter().map(|x| x as f32).collect())
            }
            RowSelection::Surveyed(cell) => cell.get().cloned().ok_or_else(|| {
                Error::new(Kind::Numeric, "the survey gave no rows").tensor(&self.name)
            }),
        }
    }
}

impl WeightSource for Repeated {
    fn make(&self) -> Result<Vec<u8>> {
        let [count, columns] = [self.shape[0] / self.times, self.shape[1]];
        let distinct = self.distinct(count, columns)?;
        let values = distinct
            .chunks_exact(columns)
            .flat_map(|row| std::iter::repeat_n(row, self.times).flatten().copied());
        encoded(&values.collect::<Vec<f32>>(), self.dtype, &self.name)
    }
}

pub(crate) fn numeric(name: &str, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot make this weight").source(error).tensor(name)
}
