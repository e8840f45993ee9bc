//! The dense network: neurons picked from several networks, lazily made.

use std::sync::Arc;

use candle_core::DType;
use moe_checkpoint::ScratchStore;
use moe_forward::candle_dtype;
use moe_math::{encoding, sampling};
use moe_model::{Error, Expert, Kind, Linear, Result, Weight, WeightSource};

use crate::part::{Axis, encoded, numeric, read_finite};

/// A neuron of the dense network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pick {
    /// The index of the network that it comes from.
    pub network: u32,
    /// The index of the neuron there.
    pub neuron: u32,
    /// The factor on its down column.
    pub factor: f32,
}

/// A projection of `width` neurons: the picked ones, then zeros.
struct Picked {
    networks: Vec<Weight>,
    picks: Arc<[Pick]>,
    width: usize,
    axis: Axis,
}

/// The network of the neurons that `picks` take from `networks`, filled up with zeros to `width`.
pub(super) fn picked(networks: &[Expert], picks: Arc<[Pick]>, width: usize) -> Expert {
    let weights = |linear: fn(&Expert) -> &Linear| {
        networks.iter().map(|network| linear(network).weight.clone()).collect()
    };
    Expert {
        gate: picked_linear(weights(|e| &e.gate), picks.clone(), width, Axis::Rows),
        up: picked_linear(weights(|e| &e.up), picks.clone(), width, Axis::Rows),
        down: picked_linear(weights(|e| &e.down), picks, width, Axis::Columns),
    }
}

/// A matrix of that network, from the same matrix of all `networks`. Its neurons are along `axis`.
fn picked_linear(networks: Vec<Weight>, picks: Arc<[Pick]>, width: usize, axis: Axis) -> Linear {
    let like = networks[0].clone();
    let shape = match axis {
        Axis::Rows => [width, like.shape()[1]],
        Axis::Columns => [like.shape()[0], width],
    };
    let made = Picked { networks, picks, width, axis };
    Linear { weight: Weight::made(like.name(), like.dtype(), &shape, made), bias: None }
}

/// Normally distributed numbers of one stream of a seed.
struct Normal {
    like: Weight,
    elements: usize,
    seed: u64,
    stream: u64,
}

/// Standard deviation of random weights: `initializer_range` of most configs.
const STD: f64 = 0.02;

/// A random network of `width` neurons for layer `index`, in the encodings of `like`.
pub(super) fn random(like: &Expert, width: usize, seed: u64, index: usize) -> Expert {
    let mut network = undecided(like, width);
    for (place, linear) in
        [&mut network.gate, &mut network.up, &mut network.down].into_iter().enumerate()
    {
        let like = linear.weight.clone();
        let normal = Normal {
            elements: like.elements(),
            seed,
            stream: (3 * index + place) as u64,
            like: like.clone(),
        };
        linear.weight = Weight::made(like.name(), like.dtype(), like.shape(), normal);
    }
    network
}

impl WeightSource for Normal {
    fn make(&self) -> Result<Vec<u8>> {
        let values =
            sampling::normal(self.elements, STD, &mut sampling::generator(self.seed, self.stream));
        encoded(&values, candle_dtype(&self.like)?, self.like.name())
    }
}

/// `network`, which has no biases, padded with zeros to `width` neurons; unchanged if it has
/// that many.
pub(super) fn padded(network: &Expert, width: usize) -> Expert {
    if network.width() == width {
        return network.clone();
    }
    let neurons = 0..network.width() as u32;
    let picks = neurons.map(|neuron| Pick { network: 0, neuron, factor: 1.0 }).collect();
    picked(std::slice::from_ref(network), picks, width)
}

impl Picked {
    /// The networks that neurons come from, each with its picks and their positions in the result.
    fn used(&self) -> impl Iterator<Item = (&Weight, Vec<(usize, Pick)>)> {
        let mut of = vec![Vec::new(); self.networks.len()];
        self.picks
            .iter()
            .enumerate()
            .for_each(|(place, pick)| of[pick.network as usize].push((place, *pick)));
        self.networks.iter().zip(of).filter(|(_, picks)| !picks.is_empty())
    }

    /// The bytes of the picked rows of gate or up, then zeros.
    fn rows(&self, dtype: DType) -> Result<Vec<u8>> {
        let row = self.networks[0].shape()[1] * dtype.size_in_bytes();
        let mut rows = vec![0u8; self.width * row];
        for (network, picks) in self.used() {
            let bytes = read_as(network, dtype)?;
            for (place, pick) in picks {
                rows[place * row..][..row]
                    .copy_from_slice(&bytes[pick.neuron as usize * row..][..row]);
            }
        }
        Ok(rows)
    }

    /// The picked columns of down, each times its factor, then zeros.
    fn columns(&self, dtype: DType) -> Result<Vec<f32>> {
        let mut columns = vec![0f32; self.width * self.networks[0].shape()[0]];
        for (network, picks) in self.used() {
            let bytes = read_as(network, dtype)?;
            let values =
                encoding::decode_f32(&bytes, dtype).map_err(|e| numeric(network.name(), e))?;
            let width = network.shape()[1];
            for (to, from) in columns.chunks_exact_mut(self.width).zip(values.chunks_exact(width)) {
                for (place, pick) in &picks {
                    to[*place] = from[pick.neuron as usize] * pick.factor;
                }
            }
        }
        Ok(columns)
    }
}

impl WeightSource for Picked {
    fn make(&self) -> Result<Vec<u8>> {
        let like = &self.networks[0];
        let dtype = candle_dtype(like)?;
        match self.axis {
            Axis::Rows => self.rows(dtype),
            Axis::Columns => encoded(&self.columns(dtype)?, dtype, like.name()),
        }
    }
}

/// The bytes of `network`, which must be in `dtype`, as the other networks are.
fn read_as(network: &Weight, dtype: DType) -> Result<Vec<u8>> {
    let (bytes, found) = read_finite(network)?;
    if found == dtype {
        return Ok(bytes);
    }
    let what = format!("this network is in {found:?}, others in {dtype:?}");
    Err(Error::new(Kind::Unsupported, what)
        .tensor(network.name())
        .remedy("convert the source to one element type first"))
}

/// A weight of the shape and encoding of `like` that holds `values`, kept in `scratch` until it is
/// written. `scratch` is None in a plan that isn't carried out.
pub(super) fn kept(
    values: &[f32],
    like: &Weight,
    scratch: Option<&ScratchStore>,
) -> Result<Weight> {
    let scratch = scratch.ok_or_else(|| {
        let what = "there is no place for weights that are made before they are written";
        Error::new(Kind::Usage, what)
    })?;
    let bytes = encoded(values, candle_dtype(like)?, like.name())?;
    Ok(Weight::made(like.name(), like.dtype(), like.shape(), scratch.keep(&bytes)?))
}

/// The shape of a network of `width` neurons like `like`, as a stand-in until it is decided.
pub(super) fn undecided(like: &Expert, width: usize) -> Expert {
    picked(std::slice::from_ref(like), Arc::new([]), width)
}
